"""Choices, logprobs, echo, penalties and tools, asked for with the official client, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.engines import EOS_ID, FakePrograms, expected_tokens, make_card, make_tokenizer
from support.servers import MODEL, RunningServer, running_server

from trtx.runtime.engine import Engine

TOKENIZER = make_tokenizer()
LONG = next(letter for letter in "abcdefgh" if EOS_ID not in expected_tokens(TOKENIZER.encode(letter), 8))
TOKENS = expected_tokens(TOKENIZER.encode(LONG), 8)
TEXT = TOKENIZER.decode(TOKENS)
GREEDY: dict[str, Any] = {"model": MODEL, "prompt": LONG, "max_tokens": 8, "temperature": 0}
USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [USER], "max_tokens": 6, "temperature": 0}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_n_choices_of_several_prompts_come_in_order_and_repeat_with_a_seed(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "prompt": ["a", "b"], "n": 2, "seed": 3, "temperature": 2.0, "max_tokens": 8}
    first, second = (client.completions.create(**asked) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 4
    alone = client.completions.create(**asked | {"prompt": "b", "n": 1, "seed": 4})
    assert alone.choices[0].text == texts[3]
    assert first.usage.prompt_tokens == len(TOKENIZER.encode("a")) + len(TOKENIZER.encode("b"))


def test_n_choices_are_streamed_side_by_side(client: openai.OpenAI) -> None:
    asked = CHAT | {"n": 3, "seed": 1, "temperature": 2.0}
    whole = client.chat.completions.create(**asked)
    texts = ["", "", ""]
    roles = []
    with client.chat.completions.create(**asked, stream=True) as stream:
        for event in stream:
            for choice in event.choices:
                texts[choice.index] += choice.delta.content or ""
                roles += [choice.delta.role] if choice.delta.role else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 3


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(**GREEDY, logprobs=2).choices[0].logprobs
    assert whole.tokens == list(TEXT)
    assert whole.text_offset == list(range(8))
    for token, logprob, top in zip(whole.tokens, whole.token_logprobs, whole.top_logprobs, strict=True):
        assert max(top, key=top.__getitem__) == token
        assert (len(top), top[token]) == (2, logprob)
        assert logprob < 0
    with client.completions.create(**GREEDY, logprobs=2, stream=True) as stream:
        pieces = [event.choices[0].logprobs for event in stream]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for piece in pieces if piece for item in getattr(piece, field)]
        assert joined == getattr(whole, field)
    assert client.completions.create(**GREEDY, logprobs=0).choices[0].logprobs.top_logprobs is None
    assert client.completions.create(**GREEDY).choices[0].logprobs is None


def test_logprobs_of_chats(client: openai.OpenAI) -> None:
    asked = CHAT | {"logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**asked).choices[0]
    found = answer.logprobs.content
    assert "".join(bytes(token.bytes).decode() for token in found).startswith(answer.message.content)
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token for token in found)
    with client.chat.completions.create(**asked, stream=True) as stream:
        streamed = [t for event in stream if event.choices[0].logprobs for t in event.choices[0].logprobs.content]
    assert streamed == found


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    asked = GREEDY | {"echo": True, "n": 2}
    assert [choice.text for choice in client.completions.create(**asked).choices] == [LONG + TEXT] * 2
    with client.completions.create(**asked, stream=True) as stream:
        texts = ["", ""]
        for event in stream:
            texts[event.choices[0].index] += event.choices[0].text
    assert texts == [LONG + TEXT] * 2


def test_a_prompt_of_ids_that_the_model_lacks_is_refused_before_it_is_echoed(client: openai.OpenAI) -> None:
    for token in (-1, 10**20):
        with pytest.raises(openai.BadRequestError, match="the token id"):
            client.completions.create(**GREEDY | {"prompt": [token], "echo": True})


def test_echo_with_logprobs_has_those_of_the_prompt(client: openai.OpenAI) -> None:
    prompt = "abcdefgh"
    asked = GREEDY | {"prompt": prompt, "echo": True, "logprobs": 2}
    for _ in range(2):  # the second time the pool knows the prompt
        whole = client.completions.create(**asked | {"max_tokens": 3}).choices[0]
        found = whole.logprobs
        assert found.tokens[:9] == ["<s>", *prompt]
        assert "".join(found.tokens[1:]) == whole.text
        assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
        assert found.text_offset == [0, *range(11)]
        ids = TOKENIZER.encode(prompt)
        for at in range(1, 9):
            best = TOKENIZER.decode(expected_tokens(ids[:at], 1, stop=None))
            assert max(found.top_logprobs[at], key=found.top_logprobs[at].__getitem__) == (best or "</s>")
            assert found.token_logprobs[at] < 0
    with client.completions.create(**asked | {"max_tokens": 3}, stream=True) as stream:
        events = [event.choices[0] for event in stream]
    assert "".join(event.text for event in events) == whole.text
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for event in events if event.logprobs for item in getattr(event.logprobs, field)]
        assert joined == getattr(whole.logprobs, field)


@pytest.mark.parametrize("logprobs", [1, None])
def test_a_prompt_alone_can_be_asked_about(client: openai.OpenAI, logprobs: int | None) -> None:
    """What evaluation harnesses send for the likelihood of a text."""
    asked: dict[str, Any] = GREEDY | {"prompt": ["abc", "de"], "echo": True, "max_tokens": 0, "logprobs": logprobs}
    answer = client.completions.create(**asked)
    assert [choice.text for choice in answer.choices] == ["abc", "de"]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (0, 7)
    lengths = [choice.logprobs and len(choice.logprobs.token_logprobs) for choice in answer.choices]
    assert lengths == ([4, 3] if logprobs else [None, None])
    ids = client.completions.create(**asked | {"prompt": TOKENIZER.encode("abc")}).choices[0]
    assert ids.logprobs == answer.choices[0].logprobs
    with client.completions.create(**asked | {"prompt": "abc"}, stream=True) as stream:
        assert "".join(event.choices[0].text for event in stream) == "abc"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(**GREEDY | {"max_tokens": 0})


def test_the_stop_string_is_named(client: openai.OpenAI) -> None:
    choice = client.completions.create(**GREEDY, stop=[TEXT[3:5]]).choices[0]
    assert (choice.finish_reason, choice.text, choice.stop_reason) == ("stop", TEXT[:3], TEXT[3:5])
    kept = client.completions.create(**GREEDY, stop=TEXT[3:5], extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == TEXT[:5]


def test_bias_and_penalties_change_the_answer(client: openai.OpenAI) -> None:
    banned = client.completions.create(**GREEDY, logit_bias={str(TOKENS[0]): -100})
    assert not banned.choices[0].text.startswith(TEXT[0])
    forced = client.completions.create(**GREEDY, logit_bias={str(TOKENS[3]): 100})
    assert forced.choices[0].text.count(TEXT[3]) > TEXT.count(TEXT[3]) + 3
    # The fake model's logits are half a unit apart.
    spread = client.completions.create(
        **GREEDY, logit_bias={str(TOKENS[3]): 100}, presence_penalty=2, frequency_penalty=2, extra_body={"min_p": 0.5}
    )
    assert len(spread.choices[0].text) == 8
    extended = client.completions.create(**GREEDY, extra_body={"repetition_penalty": 1.5, "min_tokens": 8, "top_k": 4})
    assert extended.usage.completion_tokens == 8


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
TEMPLATE = (
    "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.city }}){% endfor %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %};{% endfor %}"
)


def test_tools_and_their_calls_reach_the_chat_template() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages: list[Any] = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    rendered = "user:hi;assistant:(weather Ulm);tool:rain#1;"
    prompts: list[str] = []

    class Listening(Engine):
        def make_request(self, prompt: Any, params: Any) -> Any:
            prompts.append(self.tokenizer.decode(prompt))
            return super().make_request(prompt, params)

    engine = Listening(FakePrograms(make_card(max_seq_len=256)), make_tokenizer(chat_template=TEMPLATE))
    with (
        running_server(engine) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for choice in ("auto", "none", openai.omit):
            client.chat.completions.create(**CHAT | {"messages": messages}, tools=TOOLS, tool_choice=choice)
        client.chat.completions.create(**CHAT | {"messages": messages})
    assert prompts == ["<weather>" + rendered, rendered, "<weather>" + rendered, rendered]
