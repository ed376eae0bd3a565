"""Tool calls in the text of an answer, found while it grows. Imports no torch.

A call is given out when it is complete, whole; what turns out to be none stays text, so that nothing is lost.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from trtx.serve.tool_formats import ToolCall, ToolFormat

# What a piece of text must have in it to end a call.
CLOSERS = frozenset("}]>")
# A look at a call that is not complete goes over all of it: the next is when it has grown by this part, so that the
# cost of a long one stays in proportion to its length.
GROWTH = 64
# After so many beginnings of calls that were none, the rest of an answer is text: each costs a look at all of it.
MAX_MALFORMED = 64


@dataclass
class ToolCallParser:
    """Takes one answer apart. `names` are the tools that the request offers."""

    format: ToolFormat
    names: Collection[str]
    _rest: str = ""
    _in_call: bool = False
    _fresh: bool = True
    _called: bool = False
    _num_malformed: int = 0
    _look_at: int = 0

    def feed(self, text: str) -> list[str | ToolCall]:
        """What is certain after some more text: texts and calls in their order."""
        self._rest += text
        if self._in_call and (CLOSERS.isdisjoint(text) or len(self._rest) < self._look_at):
            return []
        found = self._advance(final=False)
        self._look_at = len(self._rest) + len(self._rest) // GROWTH
        return found

    def finish(self) -> list[str | ToolCall]:
        """What was held back, once the answer has ended."""
        found = self._advance(final=True)
        if self._rest and (not self._called or self._rest.strip(self.format.separators)):
            found.append(self._rest)
        self._rest = ""
        return found

    def _advance(self, *, final: bool) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        while self._rest:
            step = self._read_call(final=final) if self._in_call else self._read_text()
            if step is None:
                break
            found += step
        return found

    def _read_text(self) -> list[str | ToolCall] | None:
        """Text up to where a call begins or may begin; blanks before it wait for what comes. None to wait for more."""
        start, self._in_call = len(self._rest), False
        if self._num_malformed < MAX_MALFORMED:
            start, self._in_call = self.format.find(self._rest, fresh=self._fresh, called=self._called)
        text = self._rest[:start].rstrip()
        self._rest = self._rest[len(text) :]
        self._fresh = self._fresh and not text
        if not text:
            return [] if self._in_call else None
        return [text]

    def _read_call(self, *, final: bool) -> list[str | ToolCall] | None:
        call = self._rest.lstrip()
        if self._called:
            call = call.lstrip(self.format.separators).lstrip()
        read = self.format.read(call, self.names, final=final)
        if read is None:
            return None
        self._in_call = False
        if isinstance(read, str):  # malformed
            self._num_malformed += 1
            skipped = len(self._rest) - len(call) + self.format.skip(call)
            text, self._rest, self._fresh = self._rest[:skipped], self._rest[skipped:], False
            return [text]
        self._rest, self._called = call[read.end :], True
        return list(read.calls)


@dataclass
class ToolAnswer:
    """One choice of a chat whose answer may have tool calls; `only_one` leaves out all but the first."""

    parser: ToolCallParser
    only_one: bool = False
    num_calls: int = 0

    def take(self, text: str, *, ended: bool) -> tuple[str, list[dict[str, Any]]]:
        """The content and the calls that some more text adds, as the API has them."""
        pieces = self.parser.feed(text) + (self.parser.finish() if ended else [])
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        new = [piece for piece in pieces if isinstance(piece, ToolCall)]
        if self.only_one:
            new = new[: 1 - self.num_calls]
        first, self.num_calls = self.num_calls, self.num_calls + len(new)
        return content, [
            {
                "index": first + index,
                "id": make_call_id(self.parser.format.id_length),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(new)
        ]

    def end_reason(self, reason: str | None) -> str | None:
        """`tool_calls` in place of `stop` where there were any; an answer that was cut says so."""
        return "tool_calls" if reason == "stop" and self.num_calls else reason


def make_call_id(length: int | None) -> str:
    """A name for a call; some models' templates take ids of one length only."""
    if length is None:
        return f"call_{secrets.token_hex(12)}"
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))
