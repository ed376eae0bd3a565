"""Clusters that the tests of a session share, and the table of what became of what at its end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.slurm import FAKETIME, Cluster, missing_programs
from support.slurm_config import Node
from support.slurm_runs import Run

from trtx.runners.slurm.runner import SlurmRunner

ROWS: list[tuple[str, ...]] = []


def started(**options: object) -> Iterator[Cluster]:
    if reason := missing_programs():
        pytest.skip(reason)
    # A short path: sockets have at most 108 characters.
    made = Cluster(Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp")), **options)  # type: ignore[arg-type]
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """A cluster without accounting, by the clock on the wall."""
    yield from started()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster, idle before and after."""
    yield shared_cluster
    shared_cluster.clear()


@pytest.fixture
def fast_cluster(shared_fast_cluster: Cluster) -> Iterator[Cluster]:
    """The fast cluster, idle before and after."""
    yield shared_fast_cluster
    shared_fast_cluster.clear()


@pytest.fixture(scope="session")
def shared_fast_cluster() -> Iterator[Cluster]:
    """A cluster whose controller lives ten times as fast: limits, requeues and failures take seconds."""
    if not FAKETIME.exists():
        pytest.skip("libfaketime is missing: run tests/install")
    extra = (
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "PartitionName=low Nodes=cpu-1 PriorityTier=1 PreemptMode=REQUEUE",
        "PartitionName=gone Nodes=cpu-1 PriorityTier=1 PreemptMode=CANCEL",
        "PartitionName=high Nodes=cpu-1 PriorityTier=9 PreemptMode=OFF",
    )
    yield from started(speed=10, extra=extra)


@pytest.fixture(scope="session")
def limited_cluster() -> Iterator[Cluster]:
    """A cluster that holds jobs to their memory; its node's name is its own, since control groups are named by it."""
    if not os.access("/sys/fs/cgroup/memory", os.W_OK):
        pytest.skip("memory limits need a writable memory control group, version 1")
    yield from started(memory_limits=True, nodes=(Node(f"m{os.getpid()}", "", 0, 16, 64000, ("cpu",)),))


@pytest.fixture(scope="session")
def accounted_cluster() -> Iterator[Cluster]:
    """A cluster with slurmdbd and its database that forgets finished jobs at once."""
    yield from started(accounting=True, nodes=(Node("n1", "", 0, 16, 64000, ("cpu",)),))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[Run, SlurmRunner], None]:
    """Note what became of a run's steps for the table at the end."""

    def note(run: Run, runner: SlurmRunner) -> None:
        name = request.node.name.removeprefix("test_").replace("_", " ")
        ends: dict[tuple[str, ...], int] = {}
        for item in runner.outcomes():
            key = (item.state.value, item.cause.value, str(item.ended.exit_code), str(item.attempt))
            ends[key] = ends.get(key, 0) + 1
        finishes = [count for what, count in run.counts().items() if what.endswith(" finish")]
        for key, number in ends.items():
            ROWS.append((name, str(number), *key, str(max(finishes, default=0))))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    from trtx.console import plain_table

    columns = ("what happened", "steps", "state", "cause", "exit", "attempts", "most finishes of a step")
    terminalreporter.section("Slurm: what became of each step")
    terminalreporter.write_line(plain_table(columns, ROWS))
