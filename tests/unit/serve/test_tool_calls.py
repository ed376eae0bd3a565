"""Tool calls are found in answers however these are cut into pieces, and what is none stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trtx.cli import serve as cli
from trtx.errors import UsageProblem
from trtx.serve.tool_calls import MAX_MALFORMED, ToolAnswer, ToolCallParser, make_call_id
from trtx.serve.tool_formats import FORMATS, ToolCall, choose_format

NAMES = frozenset({"weather", "time"})
ULM = '{"name": "weather", "arguments": {"city": "Ulm"}}'
LLAMA = '{"name": "weather", "parameters": {"city": "Ulm"}}'
NO_JSON = '{"name": "time", "arguments": {"at": 1e999}}'
CALL = ToolCall("weather", '{"city": "Ulm"}')
NOW = ToolCall("time", "{}")


def parse(name: str, *pieces: str) -> list[str | ToolCall]:
    """What comes of an answer in pieces; texts in a row joined."""
    parser = ToolCallParser(FORMATS[name], NAMES)
    found = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    joined: list[str | ToolCall] = []
    for part in found:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


# Format, answer, what is in it.
ANSWERS: list[tuple[str, str, list[str | ToolCall]]] = [
    ("hermes", f"<tool_call>\n{ULM}\n</tool_call>", [CALL]),
    ("hermes", f"I look.\n\n<tool_call>{ULM}</tool_call>", ["I look.", CALL]),
    ("hermes", f'<tool_call>{ULM}</tool_call>\n<tool_call>{{"name": "time"}}</tool_call>\n', [CALL, NOW]),
    ("hermes", f'<tool_call>{ULM}</tool_call>\u00a0<tool_call>{{"name": "time"}}</tool_call>', [CALL, NOW]),
    ("hermes", f"<tool_call>{NO_JSON}</tool_call>", [f"<tool_call>{NO_JSON}</tool_call>"]),
    ("hermes", f"<tool_call>{ULM}", [CALL]),
    ("hermes", f"<tool_call>{ULM}\n</tool_c", [CALL]),
    ("hermes", f"<tool_call>{ULM}</tool_call> Then more.", [CALL, " Then more."]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "a } </tool_call> \\" {"}}</tool_call>',
        [ToolCall("weather", '{"city": "a } </tool_call> \\" {"}')],
    ),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>', [ToolCall("other", "{}")]),
    ("llama3_json", LLAMA, [CALL]),
    ("llama3_json", f"\n<|python_tag|>{LLAMA}", [CALL]),
    ("llama3_json", f'{LLAMA}; {{"name": "time", "parameters": {{}}}}', [CALL, NOW]),
    ("llama3_json", f"{LLAMA};\n", [CALL]),
    ("llama3_json", ULM, [CALL]),
    ("mistral", f'[TOOL_CALLS] [{ULM}, {{"name": "time", "arguments": {{}}}}]', [CALL, NOW]),
    ("mistral", '[TOOL_CALLS]weather{"city": "Ulm"}[TOOL_CALLS]time[ARGS]{}', [CALL, NOW]),
    ("mistral", '[TOOL_CALLS]weather[CALL_ID]Ab3[ARGS]{"city": "Ulm"}', [CALL]),
    ("mistral", f"Let me see [TOOL_CALLS][{ULM}]", ["Let me see", CALL]),
]
# Format and answers without any call.
TEXTS = [
    ("hermes", "Just a text with < and <tool and {}."),
    ("hermes", "<tool_call>"),
    ("hermes", "  <tool_call> weather </tool_call> \n"),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}</tool_call>'),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"x": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    ("hermes", f"<tool_call>{ULM} and so on</tool_call>"),
    ("hermes", '<tool_call>{"name": "weather", "argum'),
    ("llama3_json", '{"answer": 42}'),
    ("llama3_json", '{"name": "Ada", "parameters": {}}'),
    ("llama3_json", '<|python_tag|>print("hello")'),
    ("llama3_json", f"Here you are: {LLAMA}"),
    ("llama3_json", '{"name": "weather", "parameters": {"city": '),
    ("llama3_json", "<|python"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] [1, 2]"),
    ("mistral", f"[TOOL_CALLS] [{ULM}, 3]"),
    ("mistral", "[TOOL_CALLS]weather"),
    ("mistral", '[TOOL_CALLS]what a day {"a": 1}'),
    ("mistral", "[TOOL_CALLS]weather{'city': 'Ulm'}"),
]
CASES = [*ANSWERS, *((name, text, [text]) for name, text in TEXTS)]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_an_answer_is_taken_apart_whole_and_letter_by_letter(
    name: str, text: str, expected: list[str | ToolCall]
) -> None:
    assert parse(name, text) == expected
    assert parse(name, *text) == expected


def test_a_good_call_after_a_malformed_one_is_found() -> None:
    broken = '<tool_call>{"name": "weather", "arguments": {</tool_call>'
    assert parse("hermes", f"{broken}<tool_call>{ULM}</tool_call>") == [broken, CALL]


def test_text_is_given_out_at_once_and_a_call_when_it_is_complete() -> None:
    parser = ToolCallParser(FORMATS["hermes"], NAMES)
    assert parser.feed("One two") == ["One two"]
    assert parser.feed(" <tool") == []
    assert parser.feed("s> three") == [" <tools> three"]
    assert parser.feed(f"\n<tool_call>{ULM}") == []
    assert parser.feed("</tool_call>") == [CALL]
    assert parser.finish() == []


def test_half_a_surrogate_pair_stays_an_escape() -> None:
    (call,) = parse("hermes", '<tool_call>{"name": "weather", "arguments": {"a": "\\ud800 ü"}}</tool_call>')
    assert isinstance(call, ToolCall)
    assert call.arguments.isascii()
    assert json.loads(call.arguments) == {"a": "\ud800 ü"}


def test_an_answer_of_nothing_but_beginnings_is_given_up_early() -> None:
    text = "<tool_call>{" * 20_000
    assert parse("hermes", text) == [text]
    late = "<tool_call>x" * MAX_MALFORMED + f"<tool_call>{ULM}</tool_call>"
    assert parse("hermes", late) == [late]


MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[ARGS]", "[TOOL", "<", *'{}[]"\\;,a \n')
PARTS = st.sampled_from([ULM, LLAMA, "weather", *MARKS])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(PARTS, max_size=12).map("".join), st.randoms(use_true_random=False))
@example("llama3_json", f"{LLAMA} ;; {LLAMA} a", None)
def test_cutting_changes_nothing_and_nothing_but_calls_is_lost(name: str, text: str, random: Any) -> None:
    whole = parse(name, text)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(4)) if random else []
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(name, *pieces) == whole
    if not any(isinstance(part, ToolCall) for part in whole):
        assert "".join(map(str, whole)) == text


def test_calls_are_numbered_named_and_end_the_answer() -> None:
    answer = ToolAnswer(ToolCallParser(FORMATS["mistral"], NAMES))
    content, calls = answer.take(f"Well [TOOL_CALLS][{ULM}, {ULM}]", ended=True)
    assert content == "Well"
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    assert all(len(call["id"]) == 9 and call["id"].isalnum() for call in calls)
    assert calls[0]["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'}
    assert [answer.end_reason(reason) for reason in ("stop", "length", None)] == ["tool_calls", "length", None]
    assert make_call_id(None).startswith("call_")


def test_of_calls_that_may_not_be_parallel_the_first_counts() -> None:
    answer = ToolAnswer(ToolCallParser(FORMATS["hermes"], NAMES), only_one=True)
    found = [answer.take(f"<tool_call>{ULM}</tool_call>", ended=ended)[1] for ended in (False, True)]
    assert [len(calls) for calls in found] == [1, 0]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("… <tool_call>\\n{{ tool_call | tojson }}", "hermes"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', "llama3_json"),
        ("{{ messages }}", None),
    ],
)
def test_the_format_is_the_one_that_the_chat_template_speaks_of(template: str, name: str | None) -> None:
    assert choose_format("auto", template) is (FORMATS[name] if name else None)
    assert choose_format("mistral", template) is FORMATS["mistral"]
    assert choose_format("none", template) is None


def test_a_format_that_is_not_known_gets_the_nearest_name() -> None:
    with pytest.raises(UsageProblem, match="no tool call parser 'hermes2'") as caught:
        choose_format("hermes2", None)
    assert "hermes" in caught.value.fix
    assert choose_format("auto", None) is None


def test_the_command_line_knows_all_formats() -> None:
    assert {member.value for member in cli.ToolCallParser} == {"auto", "none", *FORMATS}
