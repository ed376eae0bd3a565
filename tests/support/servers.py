"""The real server over HTTP on loopback, in a thread of the test's process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from trtx.runtime.engine import Engine
from trtx.serve.app import create_app
from trtx.serve.main import bind, url_of

MODEL = "demo"


@dataclass(frozen=True)
class RunningServer:
    """A server that answers, its engine, and a client with its address."""

    url: str
    engine: Engine
    client: httpx.Client

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.client.post(path, json=body)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """All server-sent events of a request, parsed; the last must be [DONE] and is left out."""
        with self.client.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something the engine's thread will do."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within 20 s"
            threading.Event().wait(0.002)

    def until_idle(self) -> None:
        """Wait until no request is left, and find every block back in the pool."""
        self.until(lambda: not self.engine.has_work)
        self.engine.check_integrity()
        assert self.engine.load_now.kv_blocks_used == 0


@contextmanager
def running_server(engine: Engine, **options: Any) -> Iterator[RunningServer]:
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(engine, model_name=MODEL, **options), log_level="error", lifespan="on", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            threading.Event().wait(0.002)
        with httpx.Client(base_url=url_of(listener), timeout=20) as client:
            yield RunningServer(url_of(listener), engine, client)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
