"""A cluster inside this process, with faults to order: queue, dependencies, nodes, requeues. Deterministic.

It stands behind the same `Shell` as a real one, so everything above Slurm's commands is the same code (see `sim`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trtx.runners.slurm.states import Phase, find_meaning

# Ends a simulated cluster can make, beside those of the steps themselves.
FAULT_STATES = ("NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED")


@dataclass(frozen=True)
class SimNode:
    """A node with so many GPUs of a type; at most `slots` tasks run on it at once."""

    name: str
    gpu: str = ""
    gpus: int = 0
    slots: int = 4


@dataclass(frozen=True)
class Faults:
    """What goes wrong. `commands`: (program, number of the call from 1) → "lost", "empty", "garbage", "error", "slow".

    `jobs`: (group, index, number of the start from 1) → a state of FAULT_STATES, after `fault_after_s`.
    """

    commands: Mapping[tuple[str, int], str] = field(default_factory=dict)
    jobs: Mapping[tuple[str, int, int], str] = field(default_factory=dict)
    fault_after_s: float = 1.0


def make_faults(seed: int, rate: float, groups: Mapping[str, Sequence[int]]) -> Faults:
    """Faults drawn by chance: `rate` of the first 50 calls of each command, and of the first starts of tasks."""
    chance = random.Random(seed)
    kinds = {"sbatch": ("lost", "error"), "squeue": ("empty", "garbage", "error"), "scontrol": ("error", "empty")}
    commands = {
        (program, number): chance.choice(faults)
        for program, faults in kinds.items()
        for number in range(1, 51)
        if chance.random() < rate
    }
    jobs = {
        (group, index, 1): chance.choice(("NODE_FAIL", "PREEMPTED", "TIMEOUT"))
        for group, indices in groups.items()
        for index in indices
        if chance.random() < rate
    }
    return Faults(commands, jobs)


class Execution(Protocol):
    """What runs a task of a simulated job."""

    def begin(self, folder: Path, environ: Mapping[str, str]) -> Any:
        """Start the task that the SLURM_* variables name, of the round in `folder`."""
        ...

    def ended(self, running: Any, elapsed_s: float) -> int | None:
        """Its exit code, or None while it runs."""
        ...

    def kill(self, running: Any) -> None:
        """End it at once, without a word."""
        ...


@dataclass
class SimTask:
    """One task of an array."""

    job: int
    index: int
    group: str
    name: str
    comment: str
    folder: Path
    throttle: int | None
    dependency: tuple[tuple[str, tuple[str, ...]], ...]
    gpu: tuple[str, int]
    limit_s: float | None
    requeue: bool
    exclude: tuple[str, ...]
    state: str = "PENDING"
    reason: str = "None"
    node: str = ""
    began: float = 0.0
    ended: float = 0.0
    starts: int = 0
    running: Any = None

    @property
    def id(self) -> str:
        return f"{self.job}_{self.index}"

    @property
    def is_over(self) -> bool:
        return find_meaning(self.state).phase is Phase.ENDED


class SimulatedCluster:
    """Jobs and nodes; time goes on only by `advance`."""

    def __init__(self, nodes: Sequence[SimNode], execution: Execution, faults: Faults | None = None) -> None:
        self.nodes, self.faults = tuple(nodes), faults or Faults()
        self.tasks: list[SimTask] = []
        self.time = 0.0
        self._execution = execution
        self._ids = itertools.count(1)

    def add(self, **spec: Any) -> int:
        """Queue an array; returns its id."""
        job = next(self._ids)
        indices = spec.pop("indices")
        self.tasks += [SimTask(job=job, index=index, **spec) for index in indices]
        return job

    def advance(self, seconds: float) -> None:
        """Let time go by: tasks end, faults happen, others start."""
        self.time += seconds
        for task in self.tasks:
            if task.state == "RUNNING":
                self._look_at(task)
        self._schedule()

    def close(self) -> None:
        """End what still runs."""
        for task in self.tasks:
            if task.running is not None:
                self._execution.kill(task.running)
                task.running = None

    def cancel(self, task: SimTask) -> None:
        """As scancel does."""
        if not task.is_over:
            self._end(task, "CANCELLED")

    def _look_at(self, task: SimTask) -> None:
        elapsed = self.time - task.began
        fault = self.faults.jobs.get((task.group, task.index, task.starts))
        code = self._execution.ended(task.running, elapsed)
        if code is not None:
            self._end(task, "COMPLETED" if code == 0 else "FAILED")
        elif fault and elapsed >= self.faults.fault_after_s:
            self._end(task, fault)
        elif task.limit_s is not None and elapsed > task.limit_s:
            self._end(task, "TIMEOUT")

    def _end(self, task: SimTask, state: str) -> None:
        if task.running is not None:
            self._execution.kill(task.running)
        task.running, task.ended, task.state = None, self.time, state
        if state in ("NODE_FAIL", "PREEMPTED") and task.requeue:
            task.state, task.reason, task.node = "PENDING", "BeginTime", ""

    def _schedule(self) -> None:
        for task in self.tasks:
            if task.state == "PENDING":
                task.reason = self._why_waiting(task)
                if task.reason == "DependencyNeverSatisfied":
                    task.state, task.ended = "CANCELLED", self.time
                elif not task.reason:
                    self._start(task)

    def _why_waiting(self, task: SimTask) -> str:
        for kind, targets in task.dependency:
            wanted = [other for other in self.tasks if _is_awaited(other, kind, targets, task.index)]
            if any(not other.is_over for other in wanted):
                return "Dependency"
            if kind != "afterany" and any(other.state != "COMPLETED" for other in wanted):
                return "DependencyNeverSatisfied"
        running = [other for other in self.tasks if other.state == "RUNNING"]
        if task.throttle and sum(other.job == task.job for other in running) >= task.throttle:
            return "JobArrayTaskLimit"
        return "" if next(self._free_nodes(task), None) else "Resources"

    def _free_nodes(self, task: SimTask) -> Iterator[SimNode]:
        kind, number = task.gpu
        for node in self.nodes:
            here = [other for other in self.tasks if other.state == "RUNNING" and other.node == node.name]
            free = node.gpus - sum(other.gpu[1] for other in here)
            fits = number == 0 or (free >= number and kind in ("", node.gpu))
            if fits and len(here) < node.slots and node.name not in task.exclude:
                yield node

    def _start(self, task: SimTask) -> None:
        node = next(self._free_nodes(task))
        task.state, task.reason, task.node, task.began = "RUNNING", "None", node.name, self.time
        environ = {
            "SLURM_JOB_ID": str(task.job),
            "SLURM_ARRAY_JOB_ID": str(task.job),
            "SLURM_ARRAY_TASK_ID": str(task.index),
            "SLURMD_NODENAME": node.name,
            "SLURM_JOB_GPUS": ",".join(map(str, range(task.gpu[1]))),
        }
        if task.starts:
            environ["SLURM_RESTART_COUNT"] = str(task.starts)
        task.starts += 1
        task.running = self._execution.begin(task.folder, environ)


def _is_awaited(other: SimTask, kind: str, targets: Sequence[str], index: int) -> bool:
    if kind == "aftercorr":
        return str(other.job) in targets and other.index == index
    return str(other.job) in targets or other.id in targets
