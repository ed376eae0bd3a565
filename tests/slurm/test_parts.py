"""Groups that are larger than the cluster's arrays may be are submitted in parts."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.slurm import Cluster, missing_programs
from support.slurm_config import NODES
from support.slurm_runs import Run

from trtx.runners.slurm.commands import Answer, LocalShell
from trtx.runners.slurm.groups import Group, SlurmTask, split_indices
from trtx.runners.slurm.options import SlurmOptions
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.probe import parse_max_array, probe_max_array
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.sim import Pretend, SimClock, SimShell
from trtx.runners.slurm.simulation import SimNode, SimulatedCluster

MOST = 4


@pytest.fixture
def small_cluster() -> Iterator[Cluster]:
    if reason := missing_programs():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp"))
    cluster = Cluster(folder, nodes=NODES[4:], extra=(f"MaxArraySize={MOST}",))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def most_at_once(run: Run, stage: str) -> int:
    running = most = 0
    for line in run.record.read_text().splitlines():
        if line.startswith(stage):
            running += 1 if line.split()[1] == "start" else -1
            most = max(most, running)
    return most


def test_chains_of_ten_cells_run_in_arrays_of_four(
    small_cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None]
) -> None:
    most = probe_max_array(LocalShell(small_cluster.environ), timeout_s=10)
    assert most == MOST
    cells = range(10)
    groups = [
        run.group("convert", {f"convert-{cell}": () for cell in cells}, sleep=[0.3]),
        run.group("build", {f"build-{cell}": (f"convert-{cell}",) for cell in cells}, throttle=2, sleep=[0.1]),
        run.group("report", {"report": tuple(f"build-{cell}" for cell in cells)}),
    ]
    runner = run.runner(small_cluster, max_array=most)
    runner.submit(groups)
    listed = small_cluster.run("squeue", "-h", "-o", "%F %E").stdout.splitlines()
    waits = dict(line.split() for line in listed)
    # Part by part after the conversions of the same cells, and one part after the other.
    assert [sorted(word.split(":")[0] for word in waits[job].split(",")) for job in ("4", "5", "6")] == [
        ["aftercorr"],
        ["afterany", "aftercorr"],
        ["afterany", "aftercorr"],
    ]
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert runner.sbatch_calls == 3 + 3 + 1
    assert set(run.counts().values()) == {1}
    assert most_at_once(run, "build") <= 2
    jobs = {item.step: item.job for item in runner.outcomes()}
    assert (jobs["convert-9"], jobs["build-5"]) == ("3_1", "5_1")
    tell(run, runner)


def test_a_cell_of_a_later_part_that_fails_stops_only_its_own_chain_and_another_driver_sees_it(
    small_cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None]
) -> None:
    good = run.group("convert", {f"convert-{cell}": () for cell in range(5)})
    bad = run.task("convert-5", 5, exit=3)
    convert = dataclasses.replace(good, tasks=(*good.tasks, bad))
    build = run.group("build", {f"build-{cell}": (f"convert-{cell}",) for cell in range(6)})
    run.runner(small_cluster, max_array=MOST).submit([convert, build])
    # It knows the parts from the files, whatever it knows of the cluster.
    runner = run.runner(small_cluster)
    run.follow(runner)
    states = {step: end.state for step, end in run.outcomes(runner).items()}
    assert (states.pop("convert-5"), states.pop("build-5")) == (TaskState.FAILED, TaskState.BLOCKED)
    assert set(states.values()) == {TaskState.DONE}
    tell(run, runner)


class Full(SimShell):
    """A cluster that takes no job of this user while another has not ended."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        super().__init__(cluster)
        self.simulated = cluster

    def call(self, argv: Sequence[str], *, timeout_s: float, exported: Sequence[str] | None = None) -> Answer:
        if argv[0] == "sbatch" and any(not task.is_over for task in self.simulated.tasks):
            said = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
            return Answer(1, err=f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: {said}")
        return super().call(argv, timeout_s=timeout_s, exported=exported)


def test_a_limit_on_the_number_of_jobs_is_waited_for_however_long_the_others_take(tmp_path: Path) -> None:
    steps = ("a", "b", "c")
    groups = []
    for step in steps:
        (tmp_path / step).mkdir()
        groups.append(Group(step, (SlurmTask(step, 0, tmp_path / step, ("true",)),)))
    cluster = SimulatedCluster((SimNode("n"),), Pretend(durations=dict.fromkeys(steps, 3600.0)))
    runner = SlurmRunner(SlurmOptions(), tmp_path / "slurm", Full(cluster), clock=SimClock(cluster))
    runner.submit(groups)
    while not runner.is_over:
        runner.poll(60)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert cluster.time > 3 * 3600


@given(st.sets(st.integers(0, 10_000)), st.none() | st.integers(1, 2000))
def test_parts_have_every_index_once_and_none_that_is_too_large(indices: set[int], most: int | None) -> None:
    parts = split_indices(indices, most)
    assert sorted(index for _, part in parts for index in part) == sorted(indices)
    for offset, part in parts:
        assert all(index - offset >= 0 and (most is None or index - offset < most) for index in part)


def test_the_smaller_of_the_clusters_limits_counts() -> None:
    assert parse_max_array("MaxArraySize            = 1001\nMaxJobCount             = 500\n") == 500
    assert parse_max_array("MaxArraySize            = 0\nMaxJobCount             = 500\n") is None
    assert parse_max_array("nothing") is None
