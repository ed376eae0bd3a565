"""A look at a submission that another process follows, or nobody: decides nothing, submits nothing."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from trtx.runners.slurm.attempts import Claim, History
from trtx.runners.slurm.budget import Budget
from trtx.runners.slurm.clock import Clock, RealClock
from trtx.runners.slurm.commands import Shell, cancel_jobs
from trtx.runners.slurm.folder import SubmissionFolder
from trtx.runners.slurm.listener import Listener
from trtx.runners.slurm.options import Timing
from trtx.runners.slurm.outcome import TaskStatus
from trtx.runners.slurm.states import Cause
from trtx.runners.slurm.tracked import Tracked
from trtx.runners.slurm.truth import Verdict, decide, find_disagreement
from trtx.runners.slurm.workspace import Workspace


class Visit:
    """The tasks of the submission in `folder`, by their own files and by Slurm's word."""

    def __init__(
        self,
        folder: Path,
        shell: Shell,
        workspace: Workspace,
        *,
        timing: Timing | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._shell, self._workspace = shell, workspace
        self._timing, self._clock = timing or Timing(), clock or RealClock()
        self._folder = SubmissionFolder(folder)
        self._listener = Listener(shell, self._timing, self._clock, Budget(self._timing), lambda _: None)
        self._tasks: dict[str, Tracked] = {}

    @property
    def silence(self) -> str:
        """Why Slurm did not answer; empty when it did."""
        return self._listener.complaint

    def look(self, *, ask: bool = True) -> list[TaskStatus]:
        """All tasks; with `ask` Slurm is asked too, as often as its budget allows."""
        self._workspace.pull()
        self._read()
        if ask:
            self._listener.listen(self._tasks.values())
        for item in self._tasks.values():
            self._judge(item)
        return [item.status() for item in self._tasks.values()]

    def elapsed_s(self, step: str) -> float | None:
        """How long the latest attempt of a task took, or takes so far; None when none began."""
        attempts = self._tasks[step].history.attempts
        if not attempts:
            return None
        end = attempts[-1].end
        return max(0.0, (end.time if end and end.time else time.time()) - attempts[-1].claim.time)

    def history(self, step: str) -> History | None:
        """What a task's files tell; None for a step that is not of this submission."""
        return self._tasks[step].history if step in self._tasks else None

    def cancel(self, steps: Collection[str]) -> str:
        """End some tasks; returns Slurm's complaint, empty when there was none. Who follows them learns it at once."""
        self._workspace.pull()
        self._read()
        jobs = []
        for item in self._tasks.values():
            if item.task.step not in steps or item.round is None or item.history.done is not None:
                continue
            claim = Claim(
                "revoke",
                item.token,
                index=item.task.index,
                time=round(time.time(), 3),
                cause=Cause.CANCELLED.value,
                what="it was cancelled",
            )
            jobs += [item.job_id] if item.job_id else []
            self._workspace.revoke(item.task.folder, claim)
            self.leave_word(item)
        return cancel_jobs(self._shell, jobs, self._timing.command_s)

    def wake(self) -> None:
        """Have who follows the tasks look at all of them now."""
        self._read()
        for item in self._tasks.values():
            self.leave_word(item)

    def leave_word(self, item: Tracked) -> None:
        """Leave a name where the tasks leave theirs."""
        folder = self._folder.group_folder(item.group.name) / "news"
        (folder / f"{item.task.index}.{len(item.history.claims) + 1}.taken-back").touch()

    def _read(self) -> None:
        for group in self._folder.groups():
            rounds = self._folder.rounds(group.name)
            for task in group.tasks:
                item = self._tasks.setdefault(task.step, Tracked(group, task))
                for known in rounds:
                    if task.index in known.indices and (item.round is None or known.number > item.round.number):
                        item.enter(known)
                    elif item.round is not None and known.number == item.round.number:
                        item.round.job = known.job
                item.read()

    def _judge(self, item: Tracked) -> None:
        """What the task's files and Slurm's word come to, without doing anything about it."""
        if item.outcome is not None or item.round is None:
            return
        now = self._clock.now()
        item.see_beat(now)
        revocation = item.history.revocation(item.token)
        if item.history.done is not None:
            item.conclude(Verdict(Cause.DONE, attempt=item.history.done))
        elif revocation is not None and not revocation.retried:
            item.conclude(Verdict(Cause(revocation.cause), revocation.what))
        elif verdict := decide(item.history, item.token, item.watch, now, self._timing):
            item.noticed = f"{verdict.cause.value}: {verdict.what}; who follows the run decides what is next"
        else:
            item.noticed = find_disagreement(item.attempt, item.watch, now, self._timing)
