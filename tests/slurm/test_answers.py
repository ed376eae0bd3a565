"""Replies that are lost, answers that are empty or garbage: nothing is concluded from them, nothing runs twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.slurm import Cluster, wait_until
from support.slurm_runs import Run

from trtx.errors import UsageProblem
from trtx.runners.slurm.commands import LocalShell
from trtx.runners.slurm.options import Resources, SlurmOptions
from trtx.runners.slurm.outcome import Notice, TaskState
from trtx.runners.slurm.runner import SlurmRunner

Tell = Callable[[Run, SlurmRunner], None]
COUNT = 'n=$(($(cat "$0.calls" 2>/dev/null || echo 0) + 1)); echo $n > "$0.calls"\n'


def wrap(folder: Path, cluster: Cluster, program: str, lines: str) -> LocalShell:
    """A shell that finds another program before Slurm's; $n is the number of the call."""
    folder.mkdir(exist_ok=True)
    path = folder / program
    path.write_text(f"#!/bin/bash\n{COUNT}{lines}\n")
    path.chmod(0o755)
    return LocalShell({**cluster.environ, "PATH": f"{folder}:{cluster.environ['PATH']}"})


LOST_REPLIES = {
    "sbatch prints nothing": "exit 0",
    "sbatch is killed": "kill -9 $$",
}


@pytest.mark.parametrize("fault", LOST_REPLIES)
def test_a_submission_whose_reply_is_lost_is_found_by_its_token(
    fault: str, cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    lines = f'if [ $n = 1 ]; then /usr/bin/sbatch "$@" >/dev/null; {LOST_REPLIES[fault]}; fi; exec /usr/bin/sbatch "$@"'
    shell = wrap(tmp_path / "bin", cluster, "sbatch", lines)
    runner = run.runner(shell)
    events = runner.submit([run.group("build", {f"build-{cell}": () for cell in "abc"}, sleep=[0.3])])
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert set(run.counts().values()) == {1}
    assert runner.sbatch_calls == 1
    assert any(isinstance(event, Notice) and "its reply was lost" in event.what for event in events)
    tell(run, runner)


def test_a_lookup_that_lies_makes_a_second_job_and_no_second_execution(
    cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    lose = 'if [ $n = 1 ]; then /usr/bin/sbatch "$@" >/dev/null; exit 0; fi; exec /usr/bin/sbatch "$@"'
    wrap(tmp_path / "bin", cluster, "sbatch", lose)
    shell = wrap(tmp_path / "bin", cluster, "squeue", 'if [ $n -le 2 ]; then exit 0; fi; exec /usr/bin/squeue "$@"')
    group = run.group("build", {f"build-{number}": () for number in range(12)}, sleep=[0.3], throttle=3)
    runner = run.runner(shell)
    cluster.run("scontrol", "update", "nodename=h100-1,h100-2,a100-1,b200-1", "state=drain", "reason=test")
    try:
        runner.submit([group])
    finally:
        cluster.run("scontrol", "update", "nodename=h100-1,h100-2,a100-1,b200-1", "state=resume")
    run.follow(runner)
    assert runner.sbatch_calls == 2
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert set(run.counts().values()) == {1}
    tell(run, runner)


def test_without_any_answer_at_all_the_steps_own_files_are_enough(
    cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    for program in ("squeue", "sacct", "scontrol"):
        shell = wrap(tmp_path / "bin", cluster, program, "exit 1")
    runner = run.runner(shell)
    runner.submit([run.group("a", {"a-1": (), "a-2": ()}), run.group("b", {"b-1": ("a-1",), "b-2": ("a-2",)})])
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    tell(run, runner)


def test_a_refusal_is_one_message_that_says_what_to_do(cluster: Cluster, run: Run) -> None:
    run.options = SlurmOptions(partition="h200")
    with pytest.raises(UsageProblem, match="Slurm refuses the jobs of build") as caught:
        run.runner(cluster).submit([run.group("build", {"build": ()})])
    assert "nvalid partition" in caught.value.why
    assert "sinfo" in caught.value.fix


def test_a_job_that_everything_forgot_is_lost_and_made_again_once(
    cluster: Cluster, run: Run, tell: Tell, tmp_path: Path
) -> None:
    runner = run.runner(cluster)
    cluster.run("scontrol", "update", "partitionname=gpu", "state=down")
    try:
        runner.submit([run.group("build", {"build": ()})])
        # As after a controller that lost its state: no such job, in no list.
        wrap(tmp_path / "bin", cluster, "squeue", "exit 0")
        lines = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
        blind = run.runner(wrap(tmp_path / "bin", cluster, "scontrol", lines))
        run.follow(blind, until=lambda: "made again" in str(run.events) or "lost" in str(run.events))
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "state=up")
    # The first job was there all the time, and starts: its task was taken back and leaves at once.
    wait_until(lambda: run.counts()["build finish"], "the step has run")
    runner = run.runner(cluster)
    run.follow(runner)
    assert [item.state for item in runner.outcomes()] == [TaskState.DONE]
    assert run.counts() == {"build start": 1, "build finish": 1}
    tell(run, runner)


def test_what_the_queue_forgot_is_known_from_accounting(accounted_cluster: Cluster, run: Run, tell: Tell) -> None:
    resources = Resources(cpus=1, memory_bytes=20 << 20)
    runner = run.runner(accounted_cluster)
    runner.submit([run.group("build", {"build": ()}, resources=resources, sleep=[600])])
    wait_until(lambda: run.counts()["build start"], "the step runs")
    accounted_cluster.run("scancel", "--signal=KILL", "--full", "--user=root")
    accounted_cluster.clear()
    sacct = ("sacct", "--allocations", "--noheader", "--format=JobID%20")
    # The database hears of arrays a few seconds late.
    wait_until(lambda: "_0" in accounted_cluster.run(*sacct).stdout, "accounting knows the task")
    squeue = wrap(run.folder / "bin", accounted_cluster, "squeue", "exit 0")
    wrap(run.folder / "bin", accounted_cluster, "scontrol", 'echo "Invalid job id specified" >&2; exit 1')
    adopted = run.runner(squeue)
    run.follow(adopted)
    [outcome] = adopted.outcomes()
    assert outcome.state in (TaskState.FAILED, TaskState.CANCELLED)
    assert "does not know" not in outcome.what
    tell(run, adopted)
