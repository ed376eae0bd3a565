"""The simulated cluster: the same runner above other commands, in virtual time, with faults to order."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.slurm_runs import QUICK, Run

from trtx.runners.slurm.groups import Group, SlurmTask
from trtx.runners.slurm.options import Gpu, Resources, SlurmOptions, Timing
from trtx.runners.slurm.outcome import Event, Outcome, Retried, TaskState
from trtx.runners.slurm.probe import probe_gpus
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.sim import Pretend, Processes, SimClock, SimShell
from trtx.runners.slurm.simulation import Faults, SimNode, SimulatedCluster, make_faults
from trtx.runners.slurm.states import Cause

NODES = (SimNode("h100-1", "h100", 4), SimNode("a100-1", "a100", 8), SimNode("cpu-1"))
H100 = Resources(time_s=600, memory_bytes=1 << 30, gpu=Gpu(1, "h100"))


def chain(folder: Path, cells: int) -> list[Group]:
    """Three groups of as many tasks, each of which needs the one of its own number before it."""
    groups = []
    before: list[str] = []
    for name in ("convert", "build", "bench"):
        steps = [f"{name}-{number}" for number in range(cells)]
        tasks = []
        for index, step in enumerate(steps):
            (folder / step).mkdir(parents=True)
            tasks.append(SlurmTask(step, index, folder / step, ("true",), needs=tuple(before[index : index + 1])))
        groups.append(Group(name, tuple(tasks), H100 if name == "build" else Resources(), throttle=3))
        before = steps
    return groups


@dataclasses.dataclass
class Simulated:
    cluster: SimulatedCluster
    execution: Pretend
    runner: SlurmRunner
    events: list[Event]

    def outcomes(self) -> Mapping[str, Outcome]:
        return {item.step: item for item in self.runner.outcomes()}


def simulate(
    folder: Path, groups: list[Group], faults: Faults | None = None, **pretend: Mapping[str, float]
) -> Simulated:
    execution = Pretend(**pretend)  # type: ignore[arg-type]
    cluster = SimulatedCluster(NODES, execution, faults)
    runner = SlurmRunner(SlurmOptions(), folder / "slurm", SimShell(cluster), timing=Timing(), clock=SimClock(cluster))
    events = runner.submit(groups)
    while not runner.is_over:
        assert cluster.time < 1e5, runner.status()
        events += runner.poll(60)
    return Simulated(cluster, execution, runner, events)


def test_chains_run_to_their_end_with_one_sbatch_a_group(tmp_path: Path) -> None:
    done = simulate(tmp_path, chain(tmp_path, 5))
    assert {item.state for item in done.runner.outcomes()} == {TaskState.DONE}
    assert done.runner.sbatch_calls == 3
    assert done.execution.finished.index("convert-4") < done.execution.finished.index("build-4")


def test_the_same_faults_give_the_same_history(tmp_path: Path) -> None:
    faults = make_faults(7, 0.3, {"build": range(5)})
    histories = []
    for name in ("a", "b"):
        done = simulate(tmp_path / name, chain(tmp_path / name, 5), faults)
        histories.append([type(event).__name__ + getattr(event, "step", "") for event in done.events])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_or_runs_twice_whatever_goes_wrong(seed: int, tmp_path: Path) -> None:
    indices = {"convert": range(4), "build": range(4), "bench": range(4)}
    done = simulate(tmp_path, chain(tmp_path, 4), make_faults(seed, 0.35, indices))
    assert {item.state for item in done.runner.outcomes()} == {TaskState.DONE}, done.events
    assert set(Counter(done.execution.finished).values()) == {1}
    assert len(done.execution.finished) == 12


def test_a_step_that_fails_blocks_its_own_chain_only(tmp_path: Path) -> None:
    done = simulate(tmp_path, chain(tmp_path, 3), codes={"convert-1": 3})
    states = Counter(item.state for item in done.runner.outcomes())
    assert states == {TaskState.DONE: 6, TaskState.FAILED: 1, TaskState.BLOCKED: 2}
    assert done.outcomes()["bench-1"].state is TaskState.BLOCKED


@pytest.mark.parametrize(
    ("state", "cause", "change"),
    [
        ("TIMEOUT", Cause.TIMEOUT, "--time=20"),
        ("OUT_OF_MEMORY", Cause.MEMORY, "--mem=2048M"),
        ("NODE_FAIL", Cause.NODE, "--exclude=h100-1"),
        ("PREEMPTED", Cause.PREEMPTED, ""),
    ],
)
def test_each_cause_is_answered_by_its_policy(state: str, cause: Cause, change: str, tmp_path: Path) -> None:
    [_, build, _] = chain(tmp_path, 1)
    build = dataclasses.replace(build, tasks=(dataclasses.replace(build.tasks[0], needs=()),))
    if state == "NODE_FAIL":
        build = dataclasses.replace(build, resources=Resources(gpu=Gpu(1)))
    execution = Pretend(durations={"build-0": 5.0})
    cluster = SimulatedCluster(NODES, execution, Faults(jobs={("build", 0, 1): state}))
    options = SlurmOptions(requeue=False)
    runner = SlurmRunner(options, tmp_path / "slurm", SimShell(cluster), clock=SimClock(cluster))
    events = runner.submit([build])
    while not runner.is_over:
        # What counts as a start is counted by job here: the second round's first start is its own.
        cluster.faults = Faults() if any(isinstance(event, Retried) for event in events) else cluster.faults
        events += runner.poll(60)
    assert [event.cause for event in events if isinstance(event, Retried)] == [cause]
    assert runner.outcomes()[0].state is TaskState.DONE
    assert change in (tmp_path / "slurm/groups/build/rounds/2/job.sh").read_text()


def test_at_most_four_questions_a_minute_however_long_and_many(tmp_path: Path) -> None:
    groups = chain(tmp_path, 20)
    done = simulate(tmp_path, groups, durations={f"build-{number}": 400.0 for number in range(20)})
    minutes = done.cluster.time / 60
    assert minutes > 30
    assert done.runner.questions <= 4 * minutes


def test_steps_really_run_when_processes_stand_for_nodes(run: Run) -> None:
    cluster = SimulatedCluster(NODES, Processes(os.environ), Faults(commands={("sbatch", 1): "lost"}))
    runner = SlurmRunner(
        run.options, run.folder / "slurm", SimShell(cluster), timing=QUICK, clock=SimClock(cluster, real=True)
    )
    runner.submit([run.group("a", {"a-1": (), "a-2": ()}), run.group("b", {"b-1": ("a-1",), "b-2": ("a-2",)})])
    run.follow(runner)
    cluster.close()
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert set(run.counts().values()) == {1}


def test_its_gpus_can_be_asked_for() -> None:
    facts = probe_gpus(SimShell(SimulatedCluster(NODES, Pretend())), SlurmOptions(), timeout_s=1)
    assert facts.types == ("a100", "h100")
