"""Remotes for tests: a real S3 server on loopback, a proxy that spoils what passes through it, entries to put there."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support.entries import make_store as make_store

from trtx.cache.blobs import Blobs, open_blobs
from trtx.cache.manifest import Manifest
from trtx.cache.remote import RemoteSpec
from trtx.cache.remote_push import WritableRemote
from trtx.cache.store import Store
from trtx.files import canonical_json, sha256_bytes
from trtx.plan.keys import make_key

BUCKET = "shared-cache"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SERVER = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server; `log` is the file it writes its requests to."""

    endpoint: str
    log: Path

    def requests(self, method: str, part: str = "") -> list[str]:
        """Paths of the requests of a method so far, those that hold `part`."""
        lines = self.log.read_text().splitlines()
        found = (re.search(rf'"[^"]*\b{method} (\S+) HTTP', line) for line in lines)
        return [match[1] for match in found if match and part in match[1]]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """moto's server in a process of its own, with one empty bucket."""
    log = folder / "s3.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 60
        while not (match := re.search(r"Running on (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        endpoint = match[1]
        httpx.put(f"{endpoint}/{BUCKET}").raise_for_status()
        yield S3Server(endpoint, log)
    finally:
        process.terminate()
        process.wait()


@dataclass
class Proxy:
    """Passes bytes to a server. `stall` keeps answers back; `spoil` may change what the server answers."""

    endpoint: str
    stall: threading.Event = field(default_factory=threading.Event)
    spoil: Callable[[bytes], bytes] | None = None
    num_connections: int = 0


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A TCP proxy in front of a server on loopback."""
    host, port = target.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    made = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    leave = threading.Event()
    opened: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while answers and made.stall.is_set() and not leave.is_set():
                    leave.wait(0.05)
                sink.sendall(made.spoil(data) if answers and made.spoil else data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                made.num_connections += 1
                server = socket.create_connection((host, int(port)))
                opened.extend((client, server))
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=pump, args=(source, sink), kwargs={"answers": answers}, daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield made
    finally:
        leave.set()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        for each in opened:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@dataclass(frozen=True)
class Place:
    """Where a test's remote is."""

    url: str
    endpoint: str | None = None

    def blobs(self) -> Blobs:
        return open_blobs(self.url, endpoint=self.endpoint, timeout_s=10, may_create=True)


def closed_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def make_entry(store: Store, number: int = 0, files: dict[str, bytes] | None = None) -> Manifest:
    """Publish an entry with a true key; entries of one number have one key."""
    factors: dict[str, Any] = {"schema": "trtx.key/v1", "stage": "build", "params": {"number": number}}
    draft = Manifest(make_key(factors), f"build/{number}", "build", factors, (), {"duration_s": 1.0}, {"n": number})
    with store.stage(draft.key) as folder:
        for path, content in (files or {"engine.json": b"{}", "programs/decode.pt2": b"engine" * 1000}).items():
            target = folder / "output" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return store.publish(folder, draft)


def alter_manifest(text: str, **changes: Any) -> str:
    """A manifest's text with members replaced and a digest that fits, as an attacker would write it."""
    body = json.loads(text) | changes
    del body["digest"]
    return json.dumps(body | {"digest": sha256_bytes(canonical_json(body))}, indent=1, ensure_ascii=False) + "\n"


def ignore_progress(_done: int, _total: int) -> None:
    """Nobody watches."""


def push(remote: WritableRemote, manifest: Manifest, store: Store, *, replace: bool = False) -> bool:
    return remote.push(manifest, store, ignore_progress, threading.Event(), replace=replace)


def writable(url: str, endpoint: str | None = None, **options: Any) -> WritableRemote:
    return WritableRemote(RemoteSpec("shared", url, True, endpoint=endpoint, **options))


def environment_with(**variables: str) -> dict[str, str]:
    """This process's environment without CI's and other machines' settings, and with the given ones."""
    mixed = ("GITHUB_", "CI_", "TRTX_")
    return {name: value for name, value in os.environ.items() if not name.startswith(mixed)} | variables
