"""The server process: a socket, an engine, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from trtx.errors import EnvironmentProblem
from trtx.files import read_json
from trtx.runtime.engine import Engine
from trtx.runtime.folders import DEPLOYMENT_NAME, ENGINE_FOLDER, find_folders
from trtx.runtime.scheduler import SchedulerSettings
from trtx.serve.app import Service, create_app
from trtx.serve.gate import Guard, write_log_line

SCHEMA = "trtx.serve/v1"
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on

# A compiled program holds the GIL, and Python's own 5 ms would let the event loop wait for many steps of a small model.
SWITCH_INTERVAL_S = 1e-4

# After the drain a client that does not read its error is waited for this long.
STUCK_CLIENT_S = 5


def serve_engine(
    folder: Path,
    *,
    host: str,
    port: int,
    model_name: str | None,
    kv_cache_bytes: int | None,
    memory_fraction: float,
    scheduler: Mapping[str, Any],
    overlap: bool,
    tool_call_parser: str,
    api_keys: Sequence[str],
    max_waiting: int,
    max_body_bytes: int,
    log_requests: bool,
    drain_s: float,
    say: Callable[[str], None],
    announce: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Serve an engine until SIGINT or SIGTERM; requests in flight then have `drain_s` seconds to end.

    `port` 0 takes any free port. `scheduler` has the fields of SchedulerSettings; `tool_call_parser` is a name of
    serve/tool_formats.py. With `api_keys` only who has one is answered; `max_waiting` requests may wait, and bodies
    have at most `max_body_bytes`. `log_requests` writes a line for each to stderr. `say` gets the lines for people:
    what is served, and how to try it; `announce` the same for programs, once, when requests are taken.

    Raises EnvironmentProblem when the address is taken, and what Engine.load raises.
    """
    find_folders(folder)
    # Bound before the engine is loaded, so that a wrong port is known at once; nothing is accepted until it listens.
    with bind(host, port) as listener:
        settings = SchedulerSettings(**scheduler)
        engine = Engine.load(
            folder, kv_cache_bytes=kv_cache_bytes, memory_fraction=memory_fraction, settings=settings, overlap=overlap
        )
        name = model_name or served_name(folder)
        url, blocks = url_of(listener), engine.load_now.kv_blocks

        def on_ready() -> None:
            if announce is not None:
                announce({"schema": SCHEMA, "url": url, "model": name, "engine": str(folder), "kv_blocks": blocks})
            say(f"serving {name} on {url} ({blocks} KV-cache blocks of {engine.card.kv_cache.tokens_per_block} tokens)")
            say(f"try it:\n  {curl_line(url, name, chat=engine.tokenizer.chat_template is not None)}")

        app = create_app(
            engine,
            model_name=name,
            max_waiting=max_waiting,
            tool_call_parser=tool_call_parser,
            guard=Guard(max_body_bytes, api_keys),
            log=partial(write_log_line, write=_write_line) if log_requests else None,
        )
        run_app(app, listener, drain_s=drain_s, on_ready=on_ready)
    say("stopped")


def served_name(folder: Path) -> str:
    """The model's name when none is given: the one its deployment serves it under, else the folder's."""
    resolved = folder.resolve()
    deployment = resolved.parent if resolved.name == ENGINE_FOLDER else resolved
    try:
        return str(read_json(deployment / DEPLOYMENT_NAME)["name"])
    except (OSError, ValueError, KeyError):
        return deployment.name or "model"


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket that does not listen yet. Raises EnvironmentProblem when that is not possible."""
    listener = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # asyncio turns Nagle's algorithm off only where the protocol is named; else every event waits for 40 ms.
        listener = socket.socket(family, kind, protocol)
        # Else a port stays taken for a minute after a server that had connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise EnvironmentProblem(
            f"cannot listen on {host}:{port}",
            why="another program listens there" if taken else error.strerror or str(error),
            fix=f"choose another port, such as --port {port + 1}" if taken else "choose another --host or --port",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def curl_line(url: str, model: str, *, chat: bool) -> str:
    """A request to paste into a shell."""
    body: dict[str, Any] = {"model": model, "max_tokens": 32}
    if chat:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": "Hello"}]
    else:
        path, body["prompt"] = "completions", "Hello"
    quoted = json.dumps(body).replace("'", "'\\''")
    return f"curl -s {url}/v1/{path} -H 'content-type: application/json' -d '{quoted}'"


def run_app(app: FastAPI, listener: socket.socket, *, drain_s: float, on_ready: Callable[[], None]) -> None:
    """Run an application of `create_app` on a bound socket until SIGINT or SIGTERM.

    Then nothing new is accepted, and requests in flight go on for `drain_s` seconds or until a second signal; those
    that are left get an error. Raises EnvironmentProblem when the server does not start.
    """
    server = _Server(app, drain_s, on_ready)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # uvicorn sends itself the signal once more after its shutdown, to this handler: an ordered stop is no failure.
    previous = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not server.was_ready:
        raise EnvironmentProblem("the server did not start", why="its own message stands above", fix="correct it")


class _Server(uvicorn.Server):
    """uvicorn, except that whoever is left after the drain gets an error and not a broken connection."""

    def __init__(self, app: FastAPI, drain_s: float, on_ready: Callable[[], None]) -> None:
        backstop_s = math.ceil(drain_s) + STUCK_CLIENT_S
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=backstop_s
            )
        )
        self.was_ready = False
        self._service: Service = app.state.service
        self._drain_s = drain_s
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.was_ready = True
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = self._loop.call_later(self._drain_s, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._cut_off)
        else:
            super().handle_exit(sig, frame)

    def _cut_off(self) -> None:
        self._service.thread.close("the server is shutting down")


def _write_line(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
