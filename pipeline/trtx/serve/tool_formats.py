"""How models write tool calls into their answers, named as vLLM's --tool-call-parser has them. Imports no torch.

| format | models | a call |
|---|---|---|
| hermes | Hermes, Qwen 2.5 and 3 | `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere |
| llama3_json | Llama 3.1 to 3.3 | `{"name": …, "parameters": {…}}` alone; `<\\|python_tag\\|>` before, `;` between |
| mistral | Mistral, Ministral | `[TOOL_CALLS]` and a list of objects, or a name, `[ARGS]` and an object; anywhere |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, Protocol

from trtx.errors import UsageProblem, did_you_mean


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is JSON, an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Found:
    """Calls, and where the text after them begins."""

    calls: tuple[ToolCall, ...]
    end: int


# What begins like a call and is none.
MALFORMED: Final = "malformed"
Read = Found | Literal["malformed"] | None


class ToolFormat(Protocol):
    """One way of writing calls. `marker` begins one and may be a special token; `id_length` is of ids that the
    models' templates take back, None for any; `separators` are characters that may stand between calls."""

    @property
    def marker(self) -> str: ...
    @property
    def id_length(self) -> int | None: ...
    @property
    def separators(self) -> str: ...

    def find(self, text: str, *, fresh: bool, called: bool) -> tuple[int, bool]:
        """Where a call begins, and True; else where what may become one begins, or the end of the text, and False.

        `fresh`: no text has come before; `called`: a call has.
        """
        ...

    def read(self, text: str, names: Collection[str], *, final: bool) -> Read:
        """The calls that text begins with; None while they are incomplete, which with `final` they will stay."""
        ...

    def skip(self, text: str) -> int:
        """Characters of a malformed call that are text for certain; what comes after them is looked at again."""
        ...


class Hermes:
    """Objects between tags."""

    marker, id_length, separators = "<tool_call>", None, " \t\r\n"
    closing = "</tool_call>"

    def find(self, text: str, *, fresh: bool, called: bool) -> tuple[int, bool]:
        return find_marker(text, self.marker)

    def read(self, text: str, names: Collection[str], *, final: bool) -> Read:
        start = skip_blanks(text, len(self.marker))
        if start < len(text) and text[start] != "{":
            return MALFORMED
        if (end := find_json_end(text, start)) is None:
            return MALFORMED if final else None
        call, after = read_call(text[start:end]), skip_blanks(text, end)
        if call is None:
            return MALFORMED
        if text.startswith(self.closing, after):
            return Found((call,), after + len(self.closing))
        if not self.closing.startswith(text[after:]):
            return MALFORMED
        # A model may end its answer in place of the tag.
        return Found((call,), len(text)) if final else None

    def skip(self, text: str) -> int:
        return len(self.marker)


class Llama3Json:
    """Objects that are the whole answer."""

    marker, id_length, separators = "<|python_tag|>", None, " \t\r\n;"

    def find(self, text: str, *, fresh: bool, called: bool) -> tuple[int, bool]:
        rest = text.lstrip(self.separators if called else None)
        start = len(text) - len(rest)
        if not fresh:
            return len(text), False
        if rest.startswith(("{", self.marker)):
            return 0 if called else start, True
        return (0 if called else start, False) if self.marker.startswith(rest) else (len(text), False)

    def read(self, text: str, names: Collection[str], *, final: bool) -> Read:
        start = skip_blanks(text, len(self.marker) if text.startswith(self.marker) else 0)
        if start < len(text) and text[start] != "{":
            return MALFORMED
        if (end := find_json_end(text, start)) is None:
            return MALFORMED if final else None
        call = read_call(text[start:end])
        # Without tags an answer in JSON could be anything.
        return Found((call,), end) if call is not None and call.name in names else MALFORMED

    def skip(self, text: str) -> int:
        return len(self.marker) if text.startswith(self.marker) else 1


class Mistral:
    """A list of objects, or names with their arguments, after a marker."""

    marker, separators = "[TOOL_CALLS]", " \t\r\n"
    id_length = 9  # Their templates refuse other ids.
    named = re.compile(r"\s*([\w.-]{1,128})\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
    longest_name = 256

    def find(self, text: str, *, fresh: bool, called: bool) -> tuple[int, bool]:
        return find_marker(text, self.marker)

    def read(self, text: str, names: Collection[str], *, final: bool) -> Read:
        start = skip_blanks(text, len(self.marker))
        incomplete: Read = MALFORMED if final else None
        if start == len(text):
            return incomplete
        if text[start] == "[":
            end = find_json_end(text, start)
            calls = read_calls(text[start:end]) if end is not None else ()
            return incomplete if end is None else Found(calls, end) if calls else MALFORMED
        match = self.named.match(text, start)
        if match is None:
            return incomplete if "{" not in text[start:] and len(text) - start < self.longest_name else MALFORMED
        if (end := find_json_end(text, match.end())) is None:
            return incomplete
        arguments = parse_object(text[match.end() : end])
        return MALFORMED if arguments is None else Found((ToolCall(match[1], dump(arguments)),), end)

    def skip(self, text: str) -> int:
        return len(self.marker)


FORMATS: dict[str, ToolFormat] = {"hermes": Hermes(), "llama3_json": Llama3Json(), "mistral": Mistral()}
JSON_MARKS = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
# In a chat template, what tells that a model was trained on a format; the first that is there counts.
SIGNS = (
    ("hermes", re.compile(r"<tool_call>")),
    ("mistral", re.compile(r"\[TOOL_CALLS\]")),
    ("llama3_json", re.compile(r"<\|python_tag\|>|\"parameters\": dictionary of argument")),
)
AUTO, NONE = "auto", "none"


def choose_format(name: str, template: str | None) -> ToolFormat | None:
    """The format of a name, or for `auto` the one that a chat template speaks of; None where there is none.

    Raises UsageProblem for an unknown name.
    """
    if name == NONE or (name == AUTO and template is None):
        return None
    if name == AUTO:
        assert template is not None  # noqa: S101 - said above
        return next((FORMATS[found] for found, sign in SIGNS if sign.search(template)), None)
    if name not in FORMATS:
        raise UsageProblem(f"there is no tool call parser '{name}'", fix=did_you_mean(name, [AUTO, NONE, *FORMATS]))
    return FORMATS[name]


def find_marker(text: str, marker: str) -> tuple[int, bool]:
    """Where a marker is, and True; else where the longest end of the text is that it begins with, and False."""
    if (start := text.find(marker)) >= 0:
        return start, True
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    held = next((length for length in lengths if marker.startswith(text[-length:])), 0)
    return len(text) - held, False


def find_json_end(text: str, start: int) -> int | None:
    """Where the object or list that begins at `start` ends, strings considered; None while it is open."""
    depth, quoted = 0, False
    for match in JSON_MARKS.finditer(text, start):
        mark = match[0]
        if mark == '"':
            quoted = not quoted
        elif not quoted and mark in "{[":
            depth += 1
        elif not quoted and mark in "}]":
            depth -= 1
            if depth <= 0:
                return match.end()
    return None


def read_call(text: str) -> ToolCall | None:
    """A call of an object with a name and arguments, which Llama calls parameters; None for anything else."""
    return _make_call(parse_object(text))


def read_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls of a list; none when one of them is not a call."""
    calls = [_make_call(item) for item in parse_list(text)]
    return tuple(call for call in calls if call is not None) if None not in calls else ()


def _make_call(found: Any) -> ToolCall | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not _is_unicode(found["name"]):
        return None
    arguments = found["arguments"] if "arguments" in found else found.get("parameters", {})
    return ToolCall(found["name"], dump(arguments)) if isinstance(arguments, dict) else None


def parse_object(text: str) -> dict[str, Any] | None:
    """None for what is no JSON object."""
    found = _parse(text)
    return found if isinstance(found, dict) else None


def parse_list(text: str) -> list[Any]:
    """Empty for what is no JSON list."""
    found = _parse(text)
    return found if isinstance(found, list) else []


def dump(arguments: dict[str, Any]) -> str:
    """Arguments as the API has them: JSON in a text, in which half a surrogate pair can only be an escape."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text if _is_unicode(text) else json.dumps(arguments)


def skip_blanks(text: str, start: int) -> int:
    """The place of the next character that is no white space, or the end."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _read_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_read_float)
    except (ValueError, RecursionError):
        return None
