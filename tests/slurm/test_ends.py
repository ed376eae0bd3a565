"""Whatever ends a job, the step ends in the right state with the right cause, and is repeated as its cause demands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from support.slurm import Cluster, wait_until
from support.slurm_runs import Run

from trtx.runners.slurm.groups import Group
from trtx.runners.slurm.options import Resources
from trtx.runners.slurm.outcome import Outcome, Retried, TaskState
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.states import Cause

Tell = Callable[[Run, SlurmRunner], None]
CPU = Resources(cpus=1, memory_bytes=20 << 20, partition="cpu")


def only(runner: SlurmRunner) -> Outcome:
    [outcome] = runner.outcomes()
    return outcome


def causes_retried(run: Run) -> list[Cause]:
    return [event.cause for event in run.events if isinstance(event, Retried)]


def node_of(run: Run, step: str, attempt: int = 1) -> str:
    words = (run.folder / "steps" / step / "attempts" / str(attempt) / "log.txt").read_text().split()
    return words[2]


def test_a_step_that_fails_ends_so_at_once_and_stops_only_what_needs_it(cluster: Cluster, run: Run, tell: Tell) -> None:
    good, bad = run.task("good", 0), run.task("bad", 1, exit=3)
    groups = [
        dataclasses.replace(run.group("convert", {"other": ()}), tasks=(good, bad)),
        run.group("build", {"build-good": ("good",), "build-bad": ("bad",)}),
        run.group("report", {"report": ("build-bad",)}),
    ]
    runner = run.runner(cluster)
    runner.submit(groups)
    run.follow(runner)
    ends = {step: (end.state, end.cause) for step, end in run.outcomes(runner).items()}
    assert ends == {
        "good": (TaskState.DONE, Cause.DONE),
        "bad": (TaskState.FAILED, Cause.FAILED),
        "build-good": (TaskState.DONE, Cause.DONE),
        "build-bad": (TaskState.BLOCKED, Cause.DEPENDENCY),
        "report": (TaskState.BLOCKED, Cause.DEPENDENCY),
    }
    assert run.outcomes(runner)["bad"].ended.exit_code == 3
    wait_until(lambda: not cluster.jobs(), "Slurm dropped what can never start")
    tell(run, runner)


def test_a_step_whose_program_is_not_there_says_so_at_once(cluster: Cluster, run: Run, tell: Tell) -> None:
    task = dataclasses.replace(run.task("build", 0), argv=("/no/such/program",))
    runner = run.runner(cluster)
    runner.submit([Group("build", (task,), Resources(cpus=1))])
    run.follow(runner)
    assert (only(runner).state, only(runner).cause, only(runner).exit_code) == (TaskState.FAILED, Cause.FAILED, 6)
    assert only(runner).what.startswith("cannot start /no/such/program")
    tell(run, runner)


def test_cancelled_by_trtx_and_nothing_else_is(cluster: Cluster, run: Run, tell: Tell) -> None:
    cluster.run("sbatch", "--wrap=sleep 60", "--output=/dev/null")
    other = cluster.jobs()
    groups = [run.group("a", {"a": ()}, sleep=[600]), run.group("b", {"b": ("a",)})]
    runner = run.runner(cluster)
    runner.submit(groups)
    wait_until(lambda: run.counts()["a start"], "the step runs")
    assert runner.cancel() == ""
    assert {item.state for item in runner.outcomes()} == {TaskState.CANCELLED}
    wait_until(lambda: cluster.jobs() == other, "only the other job is left")
    again = run.runner(cluster)
    again.submit(groups)
    assert {item.state for item in again.outcomes()} == {TaskState.CANCELLED}
    tell(run, again)


def test_a_node_whose_setup_fails_is_left_out_of_the_next_round(cluster: Cluster, run: Run, tell: Tell) -> None:
    run.options = dataclasses.replace(run.options, setup=('test "$SLURMD_NODENAME" != a100-1 || ls /no/such/disk',))
    runner = run.runner(cluster)
    cluster.run("scontrol", "update", "nodename=h100-1,h100-2,b200-1", "state=drain", "reason=test")
    try:
        runner.submit([run.group("build", {"build": ()})])
        run.follow(runner, until=lambda: causes_retried(run))
    finally:
        cluster.run("scontrol", "update", "nodename=h100-1,h100-2,b200-1", "state=resume")
    run.follow(runner)
    [retried] = [event for event in run.events if isinstance(event, Retried)]
    assert retried.cause is Cause.NO_START
    assert retried.what.startswith("its job failed on a100-1 before the step began: ls: cannot access '/no/such/disk'")
    assert only(runner).state is TaskState.DONE
    assert node_of(run, "build") != "a100-1"
    tell(run, runner)


def test_a_node_set_down_fails_its_job_and_is_left_out(fast_cluster: Cluster, run: Run, tell: Tell) -> None:
    run.options = dataclasses.replace(run.options, requeue=False)
    runner = run.runner(fast_cluster)
    runner.submit([run.group("build", {"build": ()}, resources=Resources(cpus=1, partition="gpu"), sleep=[60, 0])])
    wait_until(lambda: run.counts()["build start"], "the step runs")
    wait_until(lambda: (run.folder / "steps/build/attempts/1/log.txt").read_text(), "it says where")
    node = node_of(run, "build")
    fast_cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        run.follow(runner)
    finally:
        fast_cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert causes_retried(run) == [Cause.NODE]
    assert only(runner).state is TaskState.DONE
    assert f"--exclude={node}" in (run.folder / "slurm/groups/build/rounds/2/job.sh").read_text()
    tell(run, runner)


def test_a_result_that_appears_late_is_waited_for(cluster: Cluster, run: Run, tell: Tell) -> None:
    """As on a file system that shows other machines' files late: the end of an attempt appears after Slurm's word."""
    runner = run.runner(cluster)
    runner.submit([run.group("build", {"build": ()}, sleep=[0.3])])
    folder = run.folder / "steps/build/attempts/1"
    wait_until(lambda: run.counts()["build start"], "the step runs")
    wait_until((folder / "end.json").exists, "it ended", pause_s=0.001)
    hidden = {name: hide(folder / name) for name in ("end.json", "result.json")}
    adopted = run.runner(cluster)
    run.follow(adopted, until=lambda: adopted.status()[0].slurm == "COMPLETED")
    assert not adopted.outcomes()
    for name, data in hidden.items():
        (folder / name).write_bytes(data)
    run.follow(adopted)
    assert only(adopted).state is TaskState.DONE
    tell(run, adopted)


def hide(path: Path) -> bytes:
    data = path.read_bytes()
    assert json.loads(data)
    path.unlink()
    return data
