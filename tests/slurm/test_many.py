"""A thousand cells are one array: one sbatch, a throttle that holds, and few questions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from support.slurm import Cluster
from support.slurm_runs import Run

from trtx.runners.slurm.options import Resources
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.runner import SlurmRunner


def test_an_array_of_a_thousand_tasks_with_a_throttle(
    fast_cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None]
) -> None:
    # As in earnest: at most four questions a minute.
    run.timing = dataclasses.replace(run.timing, files_s=0.5, window_s=60.0, first_poll_s=15.0, last_poll_s=60.0)
    resources = Resources(cpus=1, memory_bytes=20 << 20)
    group = run.group("build", {f"build-{n}": () for n in range(1000)}, resources=resources, throttle=20)
    runner = run.runner(fast_cluster)
    began, cpu = time.monotonic(), time.process_time()
    runner.submit([group])
    run.follow(runner, seconds=200)
    minutes, cpu = (time.monotonic() - began) / 60, time.process_time() - cpu
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert len(runner.outcomes()) == 1000
    assert set(run.counts().values()) == {1}
    assert runner.sbatch_calls == 1
    assert runner.questions <= 4 * (minutes + 1)
    assert most_at_once(run) <= 20
    print(f"{minutes * 60:.1f} s, {cpu:.2f} s of the driver, {runner.questions} questions")
    tell(run, runner)


def most_at_once(run: Run) -> int:
    running = most = 0
    for line in run.record.read_text().splitlines():
        running += 1 if line.split()[1] == "start" else -1
        most = max(most, running)
    return most
