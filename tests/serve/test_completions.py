from __future__ import annotations

from typing import Any

import pytest
from support.engines import EOS_ID, expected_tokens, make_tokenizer
from support.servers import MODEL, RunningServer

TOKENIZER = make_tokenizer()
PATH = "/v1/completions"


def expected_text(prompt: str, num_tokens: int) -> str:
    return TOKENIZER.decode(expected_tokens(TOKENIZER.encode(prompt), num_tokens))


def find_prompt(*, ends: bool, within: int = 12) -> str:
    """A prompt whose greedy answer ends, or does not end, within some tokens."""
    prompts = (f"prompt {n}" for n in range(1000))
    return next(p for p in prompts if (EOS_ID in expected_tokens(TOKENIZER.encode(p), within)) == ends)


LONG, SHORT = find_prompt(ends=False), find_prompt(ends=True)


def ask(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = server.post(PATH, {"prompt": LONG, "max_tokens": 12, "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_completion_has_the_shape_that_clients_expect(server: RunningServer) -> None:
    answer = ask(server, model=MODEL)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", MODEL)
    assert isinstance(answer["created"], int)
    assert answer["choices"] == [
        {
            "index": 0,
            "text": expected_text(LONG, 12),
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    prompt_tokens = len(TOKENIZER.encode(LONG))
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 12,
        "total_tokens": prompt_tokens + 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_sixteen_tokens_are_generated_when_nothing_is_said(server: RunningServer) -> None:
    assert ask(server, max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_an_end_token_stops_and_is_not_shown(server: RunningServer) -> None:
    (choice,) = ask(server, prompt=SHORT)["choices"]
    assert (choice["finish_reason"], choice["text"]) == ("stop", expected_text(SHORT, 12))


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_cuts_the_text_before_it(server: RunningServer, as_list: bool) -> None:
    text = expected_text(LONG, 12)
    stop = text[5:8]
    (choice,) = ask(server, stop=[stop, "never"] if as_list else stop)["choices"]
    assert (choice["finish_reason"], choice["text"]) == ("stop", text[: text.index(stop)])


def test_token_ids_are_prompts_too(server: RunningServer) -> None:
    assert ask(server, prompt=TOKENIZER.encode(LONG))["choices"][0]["text"] == expected_text(LONG, 12)


@pytest.mark.parametrize("encode", [str, TOKENIZER.encode])
def test_several_prompts_give_as_many_choices_in_order(server: RunningServer, encode: Any) -> None:
    prompts = [f"number {n}" for n in range(6)]
    answer = ask(server, prompt=[encode(prompt) for prompt in prompts])
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == [expected_text(prompt, 12) for prompt in prompts]
    assert answer["usage"]["prompt_tokens"] == sum(len(TOKENIZER.encode(prompt)) for prompt in prompts)


def test_the_events_of_a_stream_add_up_to_the_whole_answer(server: RunningServer) -> None:
    events = server.events(PATH, {"prompt": LONG, "max_tokens": 12, "temperature": 0})
    assert {event["object"] for event in events} == {"text_completion"}
    assert len({event["id"] for event in events}) == 1
    assert "".join(event["choices"][0]["text"] for event in events) == expected_text(LONG, 12)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert all("usage" not in event for event in events)


def test_the_last_event_counts_tokens_when_asked_to(server: RunningServer) -> None:
    body = {"prompt": LONG, "max_tokens": 5, "temperature": 0, "stream_options": {"include_usage": True}}
    *pieces, last = server.events(PATH, body)
    assert all(piece["usage"] is None for piece in pieces)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5


def test_a_stream_of_several_prompts_names_the_choice_of_each_event(server: RunningServer) -> None:
    prompts = [f"number {n}" for n in range(3)]
    texts = ["", "", ""]
    for event in server.events(PATH, {"prompt": prompts, "max_tokens": 12, "temperature": 0}):
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [expected_text(prompt, 12) for prompt in prompts]


def test_text_held_back_for_a_stop_string_is_in_the_stream(server: RunningServer) -> None:
    text = expected_text(LONG, 12)
    events = server.events(PATH, {"prompt": LONG, "max_tokens": 12, "temperature": 0, "stop": text[-3:] + "never"})
    assert "".join(event["choices"][0]["text"] for event in events) == text


def test_a_seed_repeats_an_answer_and_without_one_answers_differ(server: RunningServer) -> None:
    hot = {"temperature": 5.0, "max_tokens": 30, "ignore_eos": True}
    first, again, other = (ask(server, seed=seed, **hot)["choices"][0]["text"] for seed in (7, 7, 8))
    assert first == again != other
    assert ask(server, **hot)["choices"][0]["text"] != ask(server, **hot)["choices"][0]["text"]


def test_top_k_one_is_greedy_at_any_temperature(server: RunningServer) -> None:
    for cut in ({"top_k": 1}, {"top_p": 0.01}):
        assert ask(server, temperature=5.0, **cut)["choices"][0]["text"] == expected_text(LONG, 12)


def test_values_that_ask_for_nothing_are_accepted(server: RunningServer) -> None:
    nothing = {
        "n": 1,
        "best_of": 1,
        "echo": False,
        "suffix": None,
        "logprobs": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "user": "somebody",
        "metadata": {"a": "b"},
        "stop": None,
        "seed": None,
        "stream": False,
    }
    assert ask(server, **nothing)["choices"][0]["text"] == expected_text(LONG, 12)
