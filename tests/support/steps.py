"""Steps without work: the real worker runs them in this process with a stage that only writes one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trtx.files import write_text
from trtx.plan.survey import State, StepStatus
from trtx.runners.base import Ended, Task
from trtx.stages import worker
from trtx.stages.base import StepContext
from trtx.stages.job import ATTEMPT_VARIABLE, JOB_NAME, RESULT_NAME, attempt_folder, dump_file

Behaviour = Callable[[StepContext], None]


def write_output(context: StepContext) -> None:
    (context.output / "output.txt").write_text(f"made of {sorted(context.keys.values())}")


def install_stage(monkeypatch: pytest.MonkeyPatch, behaviours: dict[str, Behaviour] | None = None) -> None:
    """Every stage writes one file, or does what `behaviours` says for its name."""
    chosen = behaviours or {}

    def load_stage(name: str) -> Any:
        def run(_params: Any, context: StepContext) -> dict[str, Any]:
            chosen.get(name, write_output)(context)
            return {"stage": name}

        return SimpleNamespace(run=run)

    monkeypatch.setattr(worker, "load_stage", load_stage)


@dataclass
class InlineRunner:
    """A runner that runs each task to its end inside `start`; `killed` steps die by SIGKILL and leave no result."""

    killed: set[str] = field(default_factory=set)
    max_parallel: int = 2
    order: list[str] = field(default_factory=list)
    side_by_side: list[set[str]] = field(default_factory=list)
    _ended: dict[str, tuple[Task, Ended]] = field(default_factory=dict)

    def has_room(self, *, exclusive: bool) -> bool:
        if any(other.exclusive for other, _ in self._ended.values()):
            return False
        return not self._ended if exclusive else len(self._ended) < self.max_parallel

    def start(self, task: Task) -> None:
        self.order.append(task.step)
        if task.step in self.killed:
            self._ended[task.step] = (task, Ended(task.step, exit_code=None, signal=9))
            return
        folder = attempt_folder(task.folder, int(task.environment[ATTEMPT_VARIABLE]))
        result = worker.run_job(worker.read_job(task.folder / JOB_NAME), folder)
        write_text(folder / RESULT_NAME, dump_file(result))
        self._ended[task.step] = (task, Ended(task.step, exit_code=int(result.failure is not None), signal=None))

    def wait(self, timeout_s: float) -> list[Ended]:
        self.side_by_side.append(set(self._ended))
        ended = [end for _, end in self._ended.values()]
        self._ended.clear()
        return ended

    def stop(self, grace_s: float) -> None:
        self._ended.clear()


@dataclass
class Watcher:
    """An observer that remembers."""

    seen: list[tuple[str, State]] = field(default_factory=list)

    def changed(self, status: StepStatus) -> None:
        self.seen.append((status.step.id, status.state))

    def tick(self, statuses: list[StepStatus]) -> None:
        """Nothing to draw."""

    def note(self, text: str) -> None:
        """Nothing to say."""


def states(statuses: list[StepStatus]) -> dict[str, State]:
    return {status.step.id: status.state for status in statuses}


def corrupt(path: Path) -> None:
    """Flip one bit of a write-protected file."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
