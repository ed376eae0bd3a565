"""One S3 server for all tests of remotes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fleet import Machine, MakeMachine, remotes_of
from support.remotes import BUCKET, CREDENTIALS, Place, S3Server, make_store, s3_server

from trtx.cache.store import Store
from trtx.plan import exchange, execute


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_place(s3: S3Server, credentials: None) -> Place:
    return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3.endpoint)


@pytest.fixture(params=["file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty remote of each kind."""
    if request.param == "s3":
        made: Place = request.getfixturevalue("s3_place")
        return made
    return Place(f"file://{tmp_path}/share" if request.param == "file" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "cache")


@pytest.fixture
def other_store(tmp_path: Path) -> Store:
    """The cache of another machine."""
    return make_store(tmp_path / "other-cache")


@pytest.fixture
def machines(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeMachine]:
    """Makes machines that share one remote."""
    monkeypatch.setattr(exchange, "MIN_POLL_S", 0.05)
    monkeypatch.setattr(execute, "TICK_S", 0.02)

    def make(name: str, settings: str = "mode=read-write", **environ: str) -> Machine:
        return Machine(tmp_path / name, remotes_of(place, settings), monkeypatch, **environ)

    yield make
