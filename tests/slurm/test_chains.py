"""Groups of steps become job arrays that wait for each other."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.slurm import Cluster, missing_programs
from support.slurm_config import NODES
from support.slurm_runs import Run

from trtx.runners.slurm.outcome import Retried, TaskState
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.states import Cause

Tell = Callable[[Run, SlurmRunner], None]


def test_three_stages_of_three_cells_run_in_order_with_one_sbatch_a_stage(
    cluster: Cluster, run: Run, tell: Tell
) -> None:
    cells = ("h100", "a100", "b200")
    groups = [
        run.group("download", {"get": ()}),
        run.group("convert", {f"convert-{cell}": ("get",) for cell in cells}),
        run.group("build", {f"build-{cell}": (f"convert-{cell}",) for cell in cells}),
        run.group("report", {"report": tuple(f"build-{cell}" for cell in cells)}),
    ]
    runner = run.runner(cluster)
    runner.submit(groups)
    run.follow(runner)
    outcomes = run.outcomes(runner)
    assert {item.state for item in outcomes.values()} == {TaskState.DONE}
    assert {item.cause for item in outcomes.values()} == {Cause.DONE}
    assert runner.sbatch_calls == 4
    assert set(run.counts().values()) == {1}
    lines = [line.split()[:2] for line in run.record.read_text().splitlines()]
    for cell in cells:
        assert lines.index([f"convert-{cell}", "finish"]) < lines.index([f"build-{cell}", "start"])
    assert lines[0] == ["get", "start"]
    assert lines[-2:] == [["report", "start"], ["report", "finish"]]
    log = run.folder / "steps/get/attempts/1/log.txt"
    assert log.read_text().startswith("works on ")
    tell(run, runner)


def test_steps_that_need_others_crosswise_wait_for_the_array_and_for_nothing_else(
    cluster: Cluster, run: Run, tell: Tell
) -> None:
    bad = run.task("convert-c", 2, exit=1)
    good = run.group("convert", {"convert-a": (), "convert-b": ()}, sleep=[0.2])
    convert = dataclasses.replace(good, tasks=(*good.tasks, bad))
    needs = {"build-b": ("convert-b",), "build-c": ("convert-c",), "build-ab": ("convert-a", "convert-b")}
    single = run.group("only", {"only-b": ("convert-b",)})
    runner = run.runner(cluster)
    runner.submit([convert, run.group("build", needs), single])
    waits = cluster.run("squeue", "-h", "-o", "%j %E").stdout
    assert "afterany:" in waits
    assert "_1(unfulfilled)" in waits
    run.follow(runner)
    states = {step: end.state.value for step, end in run.outcomes(runner).items()}
    assert [states[step] for step in (*needs, "only-b")] == ["done", "blocked", "done", "done"]
    tell(run, runner)


def test_a_controller_that_lost_all_its_jobs_is_noticed_although_it_counts_anew(run: Run, tell: Tell) -> None:
    if reason := missing_programs():
        pytest.skip(reason)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp")), nodes=NODES[4:])
    try:
        cluster.start()
        cluster.run("scontrol", "update", "partitionname=cpu", "state=down")
        runner = run.runner(cluster)
        runner.submit([run.group("a", {"a": ()}), run.group("b", {"b": ("a",)})])
        run.follow(runner, until=lambda: runner.status()[0].slurm == "PENDING")
        cluster.kill("slurmctld")
        shutil.rmtree(cluster.folder / "state")
        (cluster.folder / "state").mkdir(mode=0o700)
        cluster.start_controller()
        # Another's jobs get the ids that these had.
        for _ in range(2):
            cluster.run("sbatch", "--array=0-1", "--wrap=true", "--output=/dev/null", check=True)
        run.follow(runner)
        assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
        assert set(run.counts().values()) == {1}
        assert Cause.LOST in [event.cause for event in run.events if isinstance(event, Retried)]
        tell(run, runner)
    finally:
        cluster.stop()
