from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.engines import make_engine
from support.servers import RunningServer, running_server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[RunningServer]:
    with running_server(make_engine()) as server:
        yield server


@pytest.fixture
def server(shared_server: RunningServer) -> Iterator[RunningServer]:
    """A server that every test must leave idle, with all its blocks in the pool."""
    yield shared_server
    shared_server.until_idle()
