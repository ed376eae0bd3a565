"""Tools over HTTP, with the official client, unchanged: calls are taken out of answers, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from support.scripted import ScriptedPrograms, make_scripted_engine
from support.servers import MODEL, running_server

TEMPLATE = "{# <tool_call> #}{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
ULM = '{"name": "weather", "arguments": {"city": "Ulm"}}'
HERMES = f"I look.\n<tool_call>\n{ULM}\n</tool_call>"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@contextmanager
def talk(script: str, template: str = TEMPLATE, special: str | None = None, **options: Any) -> Iterator[openai.OpenAI]:
    """A client of a model that says `script`."""
    engine = make_scripted_engine(script, template, special)
    with (
        running_server(engine, **options) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
        server.until_idle()


@pytest.fixture(scope="module")
def engine_and_client() -> Iterator[tuple[Any, openai.OpenAI]]:
    engine = make_scripted_engine(HERMES, TEMPLATE)
    with (
        running_server(engine) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield engine, client


@pytest.fixture
def client(engine_and_client: tuple[Any, openai.OpenAI]) -> openai.OpenAI:
    say(engine_and_client, HERMES)
    return engine_and_client[1]


def say(engine_and_client: tuple[Any, openai.OpenAI], script: str) -> None:
    programs: ScriptedPrograms = engine_and_client[0]._programs
    programs.script = script


def join(stream: Any) -> tuple[str, dict[int, dict[str, str]], list[str]]:
    """The content, the calls by index as a client adds them up, and the finish reasons of one streamed choice."""
    content, calls, reasons = "", {}, []
    for event in stream:
        (choice,) = event.choices
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            known = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
            known["id"] += call.id or ""
            known["name"] += call.function.name or ""
            known["arguments"] += call.function.arguments or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
    return content, calls, reasons


def test_a_call_is_taken_out_of_the_answer(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**CHAT, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Ulm"}
    assert call.id.startswith("call_")


def test_a_call_is_streamed_as_the_client_adds_it_up(client: openai.OpenAI) -> None:
    with client.chat.completions.create(**CHAT, tools=TOOLS, stream=True) as stream:
        content, calls, reasons = join(stream)
    assert (content, reasons) == ("I look.", ["tool_calls"])
    assert (calls[0]["name"], json.loads(calls[0]["arguments"])) == ("weather", {"city": "Ulm"})
    with client.chat.completions.stream(**CHAT, tools=TOOLS) as helper:
        final = helper.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "weather"


def test_the_answer_goes_back_with_what_the_tool_said(
    client: openai.OpenAI, engine_and_client: tuple[Any, openai.OpenAI]
) -> None:
    answer = client.chat.completions.create(**CHAT, tools=TOOLS).choices[0].message
    say(engine_and_client, "It rains.")
    said = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "rain"}
    messages = [*CHAT["messages"], answer, said]
    last = client.chat.completions.create(**CHAT | {"messages": messages}, tools=TOOLS).choices[0]
    assert (last.message.content, last.message.tool_calls, last.finish_reason) == ("It rains.", None, "stop")


def test_several_choices_are_taken_apart_each_for_itself(client: openai.OpenAI) -> None:
    choices = client.chat.completions.create(**CHAT, tools=TOOLS, n=2).choices
    ids = {choice.message.tool_calls[0].id for choice in choices}
    assert len(ids) == 2
    with client.chat.completions.create(**CHAT, tools=TOOLS, n=2, stream=True) as stream:
        seen = [c.index for event in stream for c in event.choices if c.delta.tool_calls]
    assert sorted(seen) == [0, 1]


def test_without_tools_or_with_none_to_call_the_text_is_text(client: openai.OpenAI) -> None:
    for asked in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = client.chat.completions.create(**CHAT, **asked).choices[0]
        assert (choice.message.content, choice.finish_reason) == (HERMES, "stop")
        assert choice.message.tool_calls is None


def test_a_call_that_was_cut_is_text(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**CHAT, tools=TOOLS, max_tokens=len(HERMES) - 30).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content == HERMES[: len(HERMES) - 30]
    with client.chat.completions.create(**CHAT, tools=TOOLS, max_tokens=30, stream=True) as stream:
        assert join(stream) == (HERMES[:30], {}, ["length"])


def test_logprobs_of_a_call_are_those_of_its_tokens(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**CHAT, tools=TOOLS, logprobs=True).choices[0]
    assert "".join(token.token for token in choice.logprobs.content).startswith(HERMES)
    with client.chat.completions.create(**CHAT, tools=TOOLS, logprobs=True, stream=True) as stream:
        streamed = [t.token for event in stream if event.choices[0].logprobs for t in event.choices[0].logprobs.content]
    assert "".join(streamed).startswith(HERMES)


def test_calls_one_at_a_time_where_that_is_asked_for(
    client: openai.OpenAI, engine_and_client: tuple[Any, openai.OpenAI]
) -> None:
    say(engine_and_client, f"<tool_call>{ULM}</tool_call>\n<tool_call>{ULM}</tool_call>")
    for parallel, count in ((True, 2), (False, 1)):
        choice = client.chat.completions.create(**CHAT, tools=TOOLS, parallel_tool_calls=parallel).choices[0]
        assert len(choice.message.tool_calls) == count
        assert choice.message.content is None


def test_a_marker_that_is_a_special_token_is_seen() -> None:
    script = f"[TOOL_CALLS] [{ULM}]"
    with talk(script, "{# [TOOL_CALLS] #}", special="[TOOL_CALLS]") as client:
        choice = client.chat.completions.create(**CHAT, tools=TOOLS).choices[0]
        assert len(choice.message.tool_calls[0].id) == 9
        plain = client.chat.completions.create(**CHAT).choices[0]
        assert plain.message.content == f" [{ULM}]"


def test_the_format_can_be_named_or_turned_off() -> None:
    llama = '{"name": "weather", "parameters": {"city": "Ulm"}}'
    with talk(llama, tool_call_parser="llama3_json") as client:
        assert client.chat.completions.create(**CHAT, tools=TOOLS).choices[0].finish_reason == "tool_calls"
    with talk(HERMES, tool_call_parser="none") as client:
        assert client.chat.completions.create(**CHAT, tools=TOOLS).choices[0].message.content == HERMES


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "cannot be guaranteed"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice", "a certain function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type", "function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools.0.function.strict",
            "cannot be guaranteed",
        ),
    ],
)
def test_what_cannot_be_guaranteed_is_refused(
    client: openai.OpenAI, asked: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.chat.completions.create(**CHAT | {"tools": TOOLS} | asked)
    assert refused.value.param == param
