"""Tasks that are taken out of the queue while they wait, by trtx and by others: they end, and none beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from support.slurm import Cluster, wait_until
from support.slurm_runs import Run

from trtx.runners.slurm.commands import LocalShell, scancel_argv
from trtx.runners.slurm.outcome import Retried, TaskState
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.states import Cause
from trtx.runners.slurm.visit import Visit
from trtx.runners.slurm.workspace import LocalWorkspace

Tell = Callable[[Run, SlurmRunner], None]
CELLS = ("a", "b", "c")


def submit_cells(run: Run, cluster: Cluster, go: Path) -> SlurmRunner:
    """One step that waits for a file; two stages of three cells behind it."""
    runner = run.runner(cluster)
    first = run.group("first", {"first": ()}, wait=str(go))
    build = run.group("build", {f"build-{cell}": ("first",) for cell in CELLS})
    bench = run.group("bench", {f"bench-{cell}": (f"build-{cell}",) for cell in CELLS})
    runner.submit([first, build, bench])
    wait_until(lambda: run.counts()["first start"], "the first step runs")
    return runner


def check_cells(run: Run, runner: SlurmRunner, gone: str) -> None:
    """One cell is cancelled, all others are made once."""
    ends = {step: (end.state, end.cause) for step, end in run.outcomes(runner).items()}
    expected = dict.fromkeys(ends, (TaskState.DONE, Cause.DONE))
    expected[f"build-{gone}"] = (TaskState.CANCELLED, Cause.CANCELLED)
    expected[f"bench-{gone}"] = (TaskState.BLOCKED, Cause.DEPENDENCY)
    assert ends == expected
    assert set(run.counts().values()) == {1}
    assert f"build-{gone} start" not in run.counts()


@pytest.mark.parametrize("seen", [True, False], ids=["that was seen waiting", "before anybody looked"])
def test_one_waiting_task_of_an_array_that_somebody_cancels(
    seen: bool, cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    runner = submit_cells(run, cluster, tmp_path / "go")
    waiting = {item.step: item for item in runner.status()}["build-b"]
    if seen:
        run.follow(runner, until=lambda: all(item.slurm for item in runner.status()))
    cluster.run("scancel", waiting.job, check=True)
    # Slurm itself has forgotten that there was such a task.
    assert f"{waiting.job} " not in cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i ").stdout
    run.follow(runner, until=lambda: "build-b" in run.outcomes(runner))
    assert not (tmp_path / "go").exists()
    (tmp_path / "go").touch()
    run.follow(runner)
    check_cells(run, runner, "b")
    tell(run, runner)


def test_all_waiting_jobs_of_a_user_cancelled_by_their_state(
    cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    runner = submit_cells(run, cluster, tmp_path / "go")
    cluster.run("scancel", "--state=PENDING", "--user=root", check=True)
    (tmp_path / "go").touch()
    run.follow(runner)
    states = {step: end.state for step, end in run.outcomes(runner).items()}
    assert states.pop("first") is TaskState.DONE
    assert {states[f"build-{cell}"] for cell in CELLS} == {TaskState.CANCELLED}
    assert set(states.values()) <= {TaskState.CANCELLED, TaskState.BLOCKED}
    assert run.counts() == {"first start": 1, "first finish": 1}
    tell(run, runner)


def test_a_waiting_task_that_trtx_cancels_leaves_the_queue_and_the_others_go_on(
    cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    runner = submit_cells(run, cluster, tmp_path / "go")
    waiting = {item.step: item.job for item in runner.status()}
    visit = Visit(run.folder / "slurm", LocalShell(cluster.environ), LocalWorkspace(), timing=run.timing)
    assert visit.cancel(["build-b"]) == ""
    run.follow(runner, until=lambda: len(runner.outcomes()) == 2)
    left = cluster.run("squeue", "-h", "-r", "-o", "%i").stdout.split()
    assert set(left) == {job for step, job in waiting.items() if not step.endswith("-b")}
    (tmp_path / "go").touch()
    run.follow(runner)
    check_cells(run, runner, "b")
    tell(run, runner)


def test_what_waits_beside_the_dependent_of_a_step_that_is_made_again_is_left_alone(
    cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    """The dependents are one array that waits for three, so Slurm keeps all its waiting tasks in one record."""
    healed = tmp_path / "healed"
    run.options = dataclasses.replace(run.options, setup=(f'test "$SLURM_JOB_PARTITION" = h100 || test -e {healed}',))
    groups = []
    for cell, partition in (("a", "h100"), ("b", "cpu")):
        group = run.group(f"build-{cell}", {f"build-{cell}": ()}, wait=str(tmp_path / "go"))
        resources = dataclasses.replace(group.resources, partition=partition)
        groups.append(dataclasses.replace(group, resources=resources))
    package = run.group("package", {f"package-{cell}": (f"build-{cell}",) for cell in "ab"})
    package = dataclasses.replace(package, resources=dataclasses.replace(package.resources, partition="h100"))
    runner = run.runner(cluster)
    runner.submit([*groups, package])
    run.follow(runner, until=lambda: any(isinstance(event, Retried) for event in run.events))
    healed.touch()
    (tmp_path / "go").touch()
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} <= {TaskState.DONE, TaskState.FAILED, TaskState.BLOCKED}
    ends = {step: end.state for step, end in run.outcomes(runner).items()}
    assert (ends["build-a"], ends["package-a"]) == (TaskState.DONE, TaskState.DONE)
    retried = {event.step for event in run.events if isinstance(event, Retried)}
    assert "package-a" not in retried
    tell(run, runner)


def test_a_dependent_of_what_was_never_started_does_not_wait_for_its_files(
    cluster: Cluster, run: Run, tell: Tell
) -> None:
    """Nobody follows the run: Slurm drops the benchmark, and starts the package, which waits for any end of it."""
    run.timing = dataclasses.replace(run.timing, late_s=600.0)
    build = [run.group(f"build-{cell}", {f"build-{cell}": ()}, exit=int(cell == "b") * 3) for cell in "ab"]
    bench = [run.group(f"bench-{cell}", {f"bench-{cell}": (f"build-{cell}",)}) for cell in "ab"]
    package = run.group("package", {f"package-{cell}": (f"bench-{cell}",) for cell in "ab"})
    run.runner(cluster).submit([*build, *bench, package])
    wait_until(lambda: not cluster.jobs(), "all jobs have ended by themselves", seconds=20)
    runner = run.runner(cluster)
    run.follow(runner)
    states = {step: end.state.value for step, end in run.outcomes(runner).items()}
    assert states == {
        **{f"{stage}-a": "done" for stage in ("build", "bench", "package")},
        "build-b": "failed",
        "bench-b": "blocked",
        "package-b": "blocked",
    }
    tell(run, runner)


def test_only_whole_arrays_are_cancelled_by_their_state() -> None:
    assert scancel_argv(["7"], pending_only=True) == ["scancel", "--quiet", "--state=PENDING", "7"]
    with pytest.raises(ValueError, match="whole arrays"):
        scancel_argv(["7_1"], pending_only=True)
