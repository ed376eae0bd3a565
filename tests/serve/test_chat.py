from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support.engines import FakePrograms, expected_tokens, make_card, make_tokenizer
from support.servers import MODEL, RunningServer, running_server

from trtx.runtime.engine import Engine

TOKENIZER = make_tokenizer()
PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


def expected_text(messages: Sequence[dict[str, str]], num_tokens: int) -> str:
    return TOKENIZER.decode(expected_tokens(TOKENIZER.render_chat(messages), num_tokens))


def ask(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = server.post(PATH, {"messages": [USER], "max_tokens": 8, "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_chat_completion_has_the_shape_that_clients_expect(server: RunningServer) -> None:
    answer = ask(server, model=MODEL)
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected_text([USER], 8), "refusal": None}
    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["prompt_tokens"] == len(TOKENIZER.render_chat([USER]))


def test_the_whole_conversation_reaches_the_template(server: RunningServer) -> None:
    messages = [{"role": "system", "content": "be"}, USER, {"role": "assistant", "content": "yo"}, USER]
    (choice,) = ask(server, messages=messages)["choices"]
    assert choice["message"]["content"] == expected_text(messages, 8)


def test_an_answer_can_be_sent_back_as_it_came(server: RunningServer) -> None:
    answer = ask(server)["choices"][0]["message"]
    ask(server, messages=[USER, answer | {"content": "ok", "tool_calls": None, "function_call": None}, USER])


def test_text_parts_are_joined_by_line_breaks(server: RunningServer) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    (choice,) = ask(server, messages=[parts])["choices"]
    assert choice["message"]["content"] == expected_text([{"role": "user", "content": "a\nb"}], 8)


def test_a_stream_opens_with_the_role_and_ends_with_the_reason(server: RunningServer) -> None:
    first, *middle, last = server.events(PATH, {"messages": [USER], "max_tokens": 8, "temperature": 0})
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [event["choices"][0]["delta"] for event in [*middle, last]]
    assert "".join(delta.get("content", "") for delta in deltas) == expected_text([USER], 8)
    assert last["choices"][0]["finish_reason"] in ("stop", "length")


def test_usage_comes_last_when_asked_for(server: RunningServer) -> None:
    body = {"messages": [USER], "max_completion_tokens": 3, "stream_options": {"include_usage": True}}
    *_, last = server.events(PATH, body | {"ignore_eos": True})
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


def test_without_a_limit_an_answer_may_fill_the_context(server: RunningServer) -> None:
    answer = ask(server, max_tokens=None, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 64
    assert answer["choices"][0]["finish_reason"] == "length"


def test_without_a_limit_a_small_pool_bounds_the_answer_and_not_the_request() -> None:
    engine = Engine(FakePrograms(make_card(), num_blocks=11), make_tokenizer())
    with running_server(engine) as server:
        # Ten blocks of four tokens, and the last token needs no place.
        assert ask(server, max_tokens=None, ignore_eos=True)["usage"]["total_tokens"] == 41


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no jokes') }}"])
def test_a_model_that_cannot_chat_says_so(template: str | None) -> None:
    engine = Engine(FakePrograms(make_card()), make_tokenizer(chat_template=template))
    with running_server(engine) as server:
        response = server.post(PATH, {"messages": [USER]})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages"
        wanted = "no chat template" if template is None else "no jokes"
        assert wanted in response.json()["error"]["message"]
