"""Submitting is enough: the driver may leave, another finds what was done, from files alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.slurm import Cluster, wait_until
from support.slurm_runs import Run

from trtx.runners.slurm.attempts import Claim, read_claims, take_claim, valid_starts
from trtx.runners.slurm.commands import LocalShell
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.runner import SlurmRunner

Tell = Callable[[Run, SlurmRunner], None]


def test_a_detached_run_goes_on_by_itself_and_is_found_done(cluster: Cluster, run: Run, tell: Tell) -> None:
    groups = [
        run.group("convert", {"convert-a": (), "convert-b": ()}, sleep=[0.2]),
        run.group("build", {"build-a": ("convert-a",), "build-b": ("convert-b",)}),
    ]
    run.runner(cluster).submit(groups)
    wait_until(lambda: not cluster.jobs(), "all jobs ended")
    # Long after: nobody answers any more.
    adopted = run.runner(LocalShell({"PATH": "/nonexistent"}))
    run.follow(adopted, seconds=5)
    assert {item.state for item in adopted.outcomes()} == {TaskState.DONE}
    assert adopted.sbatch_calls == 0
    assert set(run.counts().values()) == {1}
    tell(run, adopted)


def test_two_drivers_at_once_run_nothing_twice(cluster: Cluster, run: Run, tell: Tell) -> None:
    groups = [
        run.group("a", {f"a-{n}": () for n in range(4)}, sleep=[0.6]),
        run.group("b", {f"b-{n}": (f"a-{n}",) for n in range(4)}),
    ]
    runners = [run.runner(cluster), run.runner(cluster)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda runner: runner.submit(groups), runners))
    for runner in runners:
        run.follow(runner)
        assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    assert set(run.counts().values()) == {1}
    tell(run, runners[0])


def test_the_status_of_a_run_names_jobs_nodes_and_reasons(cluster: Cluster, run: Run) -> None:
    go_on = run.folder / "go-on"
    runner = run.runner(cluster)
    runner.submit([run.group("a", {"a": ()}, wait=str(go_on)), run.group("b", {"b": ("a",)})])
    run.follow(
        runner,
        until=lambda: runner.status()[0].state is TaskState.RUNNING and runner.status()[1].reason == "for other jobs",
    )
    first, second = runner.status()
    assert (first.state, second.state) == (TaskState.RUNNING, TaskState.WAITING)
    assert first.job.endswith("_0")
    assert first.node in {node.name for node in cluster.nodes}
    assert first.attempt == 1
    assert second.slurm == "PENDING"
    go_on.touch()
    run.follow(runner)


def test_of_many_claimants_each_gets_a_number_and_one_is_the_owner(tmp_path: Path) -> None:
    def claim(number: int) -> int:
        return take_claim(tmp_path, Claim("start", "token", job=str(number % 8), restart=0))[0].number

    with ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(claim, range(100)))
    assert sorted(numbers) == list(range(1, 101))
    claims = read_claims(tmp_path)
    assert [start.number for start in valid_starts(claims)] == [1]
    assert not list((tmp_path / "claims").glob("*.tmp"))


def test_what_was_taken_back_never_starts(tmp_path: Path) -> None:
    take_claim(tmp_path, Claim("revoke", "token", cause="lost"))
    claim, earlier = take_claim(tmp_path, Claim("start", "token", job="1"))
    assert valid_starts([*earlier, claim]) == []
    fresh, earlier = take_claim(tmp_path, Claim("start", "another", job="2"))
    assert [start.number for start in valid_starts([*earlier, fresh])] == [fresh.number]
    assert (claim.attempt, fresh.attempt) == (1, 2)
