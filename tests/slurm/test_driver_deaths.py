"""A driver may die at any instruction: the next one finishes, and nothing runs twice."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.slurm import Cluster
from support.slurm_driver import MOMENTS
from support.slurm_runs import Run

from trtx.runners.slurm.groups import Group
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.runner import SlurmRunner

TESTS = Path(__file__).parents[1]


def drive_until_death(run: Run, cluster: Cluster, groups: list[Group], moment: str) -> None:
    (run.folder / "submission.pickle").write_bytes(pickle.dumps((run.options, groups)))
    argv = [sys.executable, "-m", "support.slurm_driver", str(run.folder), moment]
    done = subprocess.run(argv, env=cluster.environ, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_killed(moment: str, cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None]) -> None:
    healed = run.folder / "healed"
    groups = [
        run.group("get", {"get": ()}, sleep=[0.2]),
        run.group("build", {f"build-{cell}": ("get",) for cell in "abc"}, sleep=[0.1]),
        run.group("bench", {f"bench-{cell}": (f"build-{cell}",) for cell in "abc"}),
    ]
    if moment == "when a failed round was taken back":
        run.options = dataclasses.replace(run.options, setup=(f"test -e {healed}",))
    drive_until_death(run, cluster, groups, moment)
    healed.touch()
    runner = run.runner(cluster)
    runner.submit(groups)
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert len(runner.outcomes()) == sum(len(group.tasks) for group in groups)
    assert set(run.counts().values()) == {1}
    tell(run, runner)
