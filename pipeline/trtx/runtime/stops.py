"""Stop strings in text that arrives in pieces. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string; holds back an end that could be the beginning of one.

    With `include` the stop string itself is passed on, too.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """The text that is safe to give out, and the stop string that was met; what follows it is dropped."""
        if not self._stops:
            return piece, None
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            at, stop = min(found, key=lambda pair: pair[0])
            return text[: at + len(stop) * self._include], stop
        keep = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """The text held back, once nothing follows it."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of the text that begins the stop string."""
        longest = min(len(text), len(stop) - 1)
        return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
