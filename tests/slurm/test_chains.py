"""Groups of steps become job arrays that wait for each other."""

from __future__ import annotations

from collections.abc import Callable

from support.slurm import Cluster
from support.slurm_runs import Run

from trtx.runners.slurm.outcome import TaskState
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
