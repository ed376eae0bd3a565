"""One task as its driver follows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trtx.runners.slurm.attempts import Attempt, History, attempt_folder, read_beat, read_history
from trtx.runners.slurm.folder import Round
from trtx.runners.slurm.groups import Group, SlurmTask
from trtx.runners.slurm.outcome import FINAL, Outcome, TaskState, TaskStatus
from trtx.runners.slurm.parsing import Row
from trtx.runners.slurm.states import Cause, Phase, describe_waiting, find_meaning
from trtx.runners.slurm.truth import Verdict, Watch


@dataclass
class Tracked:
    """A task, its latest round, its files as last read, and what Slurm said. `told` is the last attempt reported."""

    group: Group
    task: SlurmTask
    round: Round | None = None
    history: History = field(default_factory=History)
    watch: Watch = field(default_factory=Watch)
    outcome: Outcome | None = None
    told: int = 0
    noticed: str = ""

    @property
    def token(self) -> str:
        return self.round.token if self.round else ""

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt of the latest round."""
        return self.history.last(self.token)

    @property
    def job(self) -> str:
        """The array that runs the task: that of the task's own word, else the one that was submitted."""
        if self.attempt is not None:
            return self.attempt.claim.job
        return self.round.job if self.round else ""

    @property
    def job_id(self) -> str:
        return f"{self.job}_{self.array_index}" if self.job else ""

    @property
    def array_index(self) -> int:
        """Its number in the array that runs it."""
        return self.task.index - (self.round.offset if self.round else 0)

    @property
    def revoked(self) -> bool:
        return self.history.revocation(self.token) is not None

    @property
    def needs_round(self) -> bool:
        """Whether nothing is submitted that could make it: there was no round, or the last was taken back."""
        if self.outcome is not None:
            return False
        revocation = self.history.revocation(self.token)
        return self.round is None or (revocation is not None and revocation.retried)

    def read(self) -> None:
        self.history = read_history(self.task.folder)

    def enter(self, item: Round) -> None:
        """A new round was written down for it."""
        self.round, self.watch = item, Watch()

    def see_beat(self, now: float) -> None:
        if self.attempt is not None and self.attempt.end is None:
            self.watch.see_beat(read_beat(attempt_folder(self.task.folder, self.attempt.number)), now)

    def hears(self, row: Row) -> bool:
        """Whether a row is about this task's job."""
        mine = not row.indices or self.array_index in row.indices
        return row.job == self.job and mine and (not row.name or self.token in row.name)

    def last_words(self) -> str:
        """The last line its job printed outside of the step: what a failed setup or container said."""
        path = self.round.folder / f"slurm-{self.job_id}.out" if self.round else None
        try:
            lines = path.read_text(errors="replace").splitlines() if path else []
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]

    def conclude(self, verdict: Verdict) -> Outcome:
        """The end of the task."""
        state = {
            Cause.DONE: TaskState.DONE,
            Cause.DEPENDENCY: TaskState.BLOCKED,
            Cause.INPUT: TaskState.BLOCKED,
            Cause.CANCELLED: TaskState.CANCELLED,
        }.get(verdict.cause, TaskState.FAILED)
        attempt = verdict.attempt or (self.history.attempts[-1] if self.history.attempts else None)
        end = attempt.end if attempt else None
        done = state is TaskState.DONE
        self.outcome = Outcome(
            self.task.step,
            state,
            verdict.cause,
            verdict.what,
            attempt=attempt.number if attempt else 0,
            exit_code=0 if done else (end.exit_code if end else None),
            signal=end.signal if end and not done else None,
            job=f"{attempt.claim.job}_{self.array_index}" if attempt else self.job_id,
            node=attempt.claim.node if attempt else "",
        )
        return self.outcome

    def status(self) -> TaskStatus:
        row, attempt = self.watch.row, self.attempt
        running = attempt is not None and attempt.end is None
        state = self.outcome.state if self.outcome else (TaskState.RUNNING if running else TaskState.WAITING)
        queued = row is not None and find_meaning(row.state).phase is Phase.QUEUED
        reason = self.outcome.what if self.outcome else self.noticed
        if not reason and state is TaskState.WAITING:
            reason = "not submitted yet" if not self.job else ""
            if self.round is not None and self.round.complaint and not self.job:
                reason = f"sbatch: {self.round.complaint}"
            if queued and row is not None:
                reason = describe_waiting(row.reason)
        return TaskStatus(
            self.task.step,
            state,
            self.outcome.cause if self.outcome else None,
            job=self.outcome.job if self.outcome else self.job_id,
            node=attempt.claim.node if attempt else (row.node if row else ""),
            attempt=self.history.attempts[-1].number if self.history.attempts else 0,
            elapsed_s=row.elapsed_s if row else 0,
            reason=reason,
            start=row.start if queued and row else "",
            slurm=row.state if row else "",
        )


def is_final(item: Tracked) -> bool:
    return item.outcome is not None and item.outcome.state in FINAL
