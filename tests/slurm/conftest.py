"""Clusters that the tests of a session share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.slurm import FAKETIME, Cluster, missing_programs
from support.slurm_config import Node
from support.slurm_runs import Run
from support.slurm_table import PROPERTY, End, make_row

from trtx.runners.slurm.runner import SlurmRunner


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
    yield from started(speed=10)


@pytest.fixture(scope="session")
def accounted_cluster() -> Iterator[Cluster]:
    """A cluster with slurmdbd and its database that forgets finished jobs at once."""
    yield from started(accounting=True, nodes=(Node("n1", "", 0, 16, 64000, ("cpu",)),))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture
def tell(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[Run, SlurmRunner], None]:
    """Note what became of a run's steps for the table at the end."""

    def note(run: Run, runner: SlurmRunner) -> None:
        name = request.node.name.removeprefix("test_").replace("_", " ")
        counts = run.counts()
        ends: dict[tuple[str, str], list[str]] = {}
        for item in runner.outcomes():
            ends.setdefault((item.state.value, item.cause.value), []).append(item.step)
        for (state, cause), steps in ends.items():
            most = [max(counts[f"{step} {what}"] for step in steps) for what in ("start", "finish")]
            begun = sum(bool(counts[f"{step} start"]) for step in steps)
            record_property(PROPERTY, make_row(name, End(state, cause, None, begun, *most)))

    return note
