"""Submissions of trivial steps to a cluster, and what came of them, counted by what each execution left."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.slurm import Cluster

from trtx.runners.slurm.commands import LocalShell, Shell
from trtx.runners.slurm.groups import Group, SlurmTask
from trtx.runners.slurm.options import Resources, SlurmOptions, Timing
from trtx.runners.slurm.outcome import Event, Outcome
from trtx.runners.slurm.runner import SlurmRunner

WORKER = Path(__file__).with_name("slurm_worker.py")
# Everything is quicker than in earnest, in the same proportions; so is the budget of questions.
QUICK = Timing(
    files_s=0.05,
    queries=4,
    window_s=1.0,
    first_poll_s=0.3,
    last_poll_s=1.0,
    late_s=1.0,
    heartbeat_s=0.2,
    silence_s=2.0,
    command_s=10.0,
    retry_s=0.2,
    last_retry_s=1.0,
    retries=40,
)


@dataclass
class Run:
    """A folder for one submission and its steps."""

    folder: Path
    options: SlurmOptions = field(default_factory=lambda: SlurmOptions(python=sys.executable, warn_s=0))
    timing: Timing = QUICK
    events: list[Event] = field(default_factory=list)

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def task(self, step: str, index: int, needs: Sequence[str] = (), **job: Any) -> SlurmTask:
        """A step that does what `job` says, see slurm_worker.py."""
        folder = self.folder / "steps" / step
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"step": step, "record": str(self.record), **job}))
        argv = (sys.executable, "-I", "-S", str(WORKER), "job.json")
        return SlurmTask(step, index, folder, argv, {"GREETING": "hello"}, needs=tuple(needs))

    def group(self, name: str, steps: Mapping[str, Sequence[str]], throttle: int | None = None, **rest: Any) -> Group:
        """A group of steps with what each needs; `resources` and what its jobs do are in `rest`."""
        resources = rest.pop("resources", Resources(cpus=1, memory_bytes=20 << 20))
        tasks = [self.task(step, index, needs, **rest) for index, (step, needs) in enumerate(steps.items())]
        return Group(name, tuple(tasks), resources, throttle)

    def runner(self, shell: Shell | Cluster, **rest: Any) -> SlurmRunner:
        if isinstance(shell, Cluster):
            shell = LocalShell(shell.environ)
        return SlurmRunner(self.options, self.folder / "slurm", shell, timing=self.timing, **rest)

    def counts(self) -> Counter[str]:
        """How often what was written: "a start", "a finish", "a stopped"."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return Counter(line.rpartition(" ")[0] for line in lines)

    def follow(self, runner: SlurmRunner, until: Callable[[], object] | None = None, seconds: float = 60) -> None:
        """Poll until all has ended, or until something is true."""
        deadline = time.monotonic() + seconds
        while not runner.is_over and not (until and until()):
            assert time.monotonic() < deadline, f"not over after {seconds} s: {runner.status()}\n{self.events}"
            self.events += runner.poll(0.2)

    def outcomes(self, runner: SlurmRunner) -> dict[str, Outcome]:
        return {item.step: item for item in runner.outcomes()}
