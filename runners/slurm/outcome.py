"""What the runner reports of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trtx.runners.base import Ended
from trtx.runners.slurm.states import Cause


class TaskState(StrEnum):
    """What a task is in. The last four are final."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"


FINAL = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.BLOCKED, TaskState.CANCELLED})


@dataclass(frozen=True)
class Outcome:
    """The end of a task, once per task. `attempt` is 0 when none was started; `what` is one sentence."""

    step: str
    state: TaskState
    cause: Cause
    what: str = ""
    attempt: int = 0
    exit_code: int | None = None
    signal: int | None = None
    job: str = ""
    node: str = ""

    @property
    def ended(self) -> Ended:
        """In the words of all runners; a task that ended without an exit code has 1."""
        code = None if self.signal else (self.exit_code if self.exit_code is not None else int(self.cause != "done"))
        return Ended(self.step, code, self.signal)


@dataclass(frozen=True)
class Began:
    """An attempt of a task began to run."""

    step: str
    attempt: int
    job: str
    node: str


@dataclass(frozen=True)
class Retried:
    """A task is submitted again, with what changed."""

    step: str
    cause: Cause
    what: str
    change: str = ""


@dataclass(frozen=True)
class Notice:
    """Something people should know that ends no task: disagreement, silence, a lost reply."""

    what: str


Event = Outcome | Began | Retried | Notice


@dataclass(frozen=True)
class TaskStatus:
    """One row of a live table. `reason` is why it waits, or how it ended; `start` when Slurm expects it to begin."""

    step: str
    state: TaskState
    cause: Cause | None
    job: str
    node: str
    attempt: int
    elapsed_s: int
    reason: str
    start: str = ""
    slurm: str = ""
