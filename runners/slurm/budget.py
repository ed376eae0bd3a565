"""How often the controller is asked: at most so many questions in any stretch of time, however many jobs there are."""

from __future__ import annotations

from collections import deque

from trtx.runners.slurm.options import Timing


class Budget:
    """Counts questions. Ordinary polls grow rarer while nothing changes; urgent ones only keep within the limit."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._asked: deque[float] = deque()
        self._interval_s = timing.first_poll_s
        self._next = 0.0
        self.total = 0

    def may_ask(self, now: float) -> bool:
        """Whether one more question keeps within the limit."""
        while self._asked and now - self._asked[0] >= self._timing.window_s:
            self._asked.popleft()
        return len(self._asked) < self._timing.queries

    def is_due(self, now: float, *, urgent: bool) -> bool:
        """Whether to poll now. One question is kept back for what is urgent."""
        if not self.may_ask(now):
            return False
        return urgent or (now >= self._next and len(self._asked) < max(1, self._timing.queries - 1))

    def note(self, now: float) -> None:
        """One question was asked."""
        self._asked.append(now)
        self.total += 1

    def polled(self, now: float, *, news: bool) -> None:
        """A poll was made: plan the next one, later than the last time unless there was news."""
        longer = min(self._interval_s * 1.5, self._timing.last_poll_s)
        self._interval_s = self._timing.first_poll_s if news else longer
        self._next = now + self._interval_s
