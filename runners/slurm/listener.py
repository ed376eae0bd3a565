"""Asks Slurm about all open tasks at once, as rarely as the budget says, and remembers what was heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from trtx.runners.slurm.budget import Budget
from trtx.runners.slurm.clock import Clock
from trtx.runners.slurm.commands import Listing, Shell, ask_sacct, ask_scontrol, ask_squeue
from trtx.runners.slurm.options import Timing
from trtx.runners.slurm.parsing import Row
from trtx.runners.slurm.states import Phase
from trtx.runners.slurm.tracked import Tracked
from trtx.runners.slurm.truth import needs_word


class Listener:
    """`complaint` is why the last question had no answer, with `unanswered` of them in a row."""

    def __init__(self, shell: Shell, timing: Timing, clock: Clock, budget: Budget, tell: Callable[[str], None]) -> None:
        self._shell, self._timing, self._clock, self._budget, self._tell = shell, timing, clock, budget, tell
        self._accounting: bool | None = None
        self._asked_about: list[str] = []
        self.complaint = ""
        self.unanswered = 0
        self.rows: Sequence[Row] = ()

    def listen(self, tasks: Iterable[Tracked]) -> bool:
        """Ask when it is time to; whether Slurm was asked."""
        now = self._clock.now()
        if not self._budget.may_ask(now):
            return False
        open_tasks = [item for item in tasks if item.outcome is None and item.job]
        if not open_tasks:
            return False
        if not self._budget.is_due(now, urgent=False):
            urgent = any(needs_word(item.history, item.token, item.watch) for item in open_tasks)
            if not urgent or not self._budget.is_due(now, urgent=True):
                return False
        self._budget.note(now)
        listing = ask_squeue(self._shell, self._timing.command_s)
        now = self._clock.now()
        if self._note(listing, "squeue"):
            self.rows = listing.rows
        before = [(item.watch.row, item.watch.ended_readings) for item in open_tasks]
        missing = self._hear(open_tasks, listing, now)
        for item in open_tasks:
            item.see_beat(now)
        if missing and not listing.complaint:
            self._ask_about(missing)
        after = [(item.watch.row, item.watch.ended_readings) for item in open_tasks]
        self._budget.polled(self._clock.now(), news=before != after)
        return True

    def _note(self, listing: Listing, program: str) -> bool:
        """Remember whether there was an answer; tell of the first that fails and of lines nobody can read."""
        if listing.complaint:
            self.unanswered += 1
            if listing.complaint != self.complaint:
                self._tell(f"{program} gave no answer: {listing.complaint}; nothing is concluded from that")
            self.complaint = listing.complaint
            return False
        if self.unanswered:
            self._tell(f"{program} answers again")
        if listing.unreadable:
            self._tell(f"{program} printed {listing.unreadable} lines that cannot be read; they are ignored")
        self.unanswered, self.complaint = 0, ""
        return True

    def _hear(self, tasks: Sequence[Tracked], listing: Listing, now: float) -> list[Tracked]:
        """Hand each row to its task; those that no row is about."""
        by_task = {(row.job, index): row for row in listing.rows for index in row.indices}
        of_the_rest = {row.job: row for row in listing.rows if not row.indices}
        missing = []
        for item in tasks:
            said = by_task.get((item.job, item.array_index))
            if said is None and item.attempt is None and item.watch.phase in (None, Phase.QUEUED):
                said = of_the_rest.get(item.job)
            if said is not None and item.hears(said):
                item.watch.hear(said, now)
            elif item.watch.phase is None or item.watch.ended_since is None:
                missing.append(item)
            else:  # It had ended and is forgotten now: its last word stands.
                item.watch.ended_readings += 1
        return missing

    def _ask_about(self, missing: Sequence[Tracked]) -> None:
        """Ask where finished jobs are remembered longer; in turns when there are several."""
        jobs = sorted({item.job for item in missing}, key=int)
        if not self._budget.may_ask(self._clock.now()):
            return
        self._budget.note(self._clock.now())
        if self._accounting is not False:
            listing = ask_sacct(self._shell, jobs, self._timing.command_s)
            if listing.complaint:
                self._accounting = False if "disabled" in listing.complaint.lower() else self._accounting
            else:
                self._accounting = True
                missing = self._hear(missing, listing, self._clock.now())
            if not missing or not self._budget.may_ask(self._clock.now()):
                return
            self._budget.note(self._clock.now())
        self._ask_controller(missing, jobs)

    def _ask_controller(self, missing: Sequence[Tracked], jobs: Sequence[str]) -> None:
        """Ask about one job, another one each time; only what the controller says it does not know is denied."""
        fresh = [job for job in jobs if job not in self._asked_about] or list(jobs)
        self._asked_about = [*(job for job in self._asked_about if job not in fresh), fresh[0]]
        listing = ask_scontrol(self._shell, fresh[0], self._timing.command_s)
        if listing.complaint:
            return
        now = self._clock.now()
        asked = [item for item in missing if item.job == fresh[0]]
        unheard = self._hear(asked, listing, now)
        if listing.denied or _is_other(listing, asked):
            for item in unheard:
                item.watch.hear_denial(now)
        elif not listing.unreadable:
            # Slurm knows the array, here and in squeue's answer just before, and has no such task in it any more.
            for item in unheard:
                if item.attempt is None:
                    item.watch.hear_removal(now)


def _is_other(listing: Listing, asked: Sequence[Tracked]) -> bool:
    """Whether the controller has given the id to a job that is not trtx's: it lost its state and counts anew."""
    return bool(listing.rows) and not any(item.token in row.name for row in listing.rows for item in asked)
