"""A container registry on loopback that can misbehave, and the real one where it is installed.

The first speaks what pulling a manifest takes: HEAD and GET of /v2/<name>/manifests/<tag>, tokens for everybody
(https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
from support.http_threads import serve_handler

INDEX = "application/vnd.oci.image.index.v1+json"
TOKEN = "for-everybody"


def make_index(name: str) -> bytes:
    """A manifest of an image for several architectures, without any: registries take it as it is."""
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"name": name}}
    return json.dumps(body).encode()


def digest_of(manifest: bytes) -> str:
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


@dataclass
class Registry:
    """What is served, by `name:tag`, and how."""

    address: str = ""
    manifests: dict[str, bytes] = field(default_factory=dict)
    wants_token: bool = False
    refuses_token: bool = False
    states_digest: str | None = ""  # "": the right one; None: no header
    knows_head: bool = True
    status: int | None = None  # every answer
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_registry() -> Iterator[Registry]:
    """Run the server in a thread."""
    registry = Registry()

    class Handler(RegistryHandler):
        pass

    Handler.registry = registry
    with serve_handler(Handler) as registry.address:
        yield registry


class RegistryHandler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def answer(self) -> None:
        registry, url = self.registry, urlsplit(self.path)
        registry.requests.append(f"{self.command} {url.path}")
        if registry.status is not None:
            self.send(registry.status, b"", {})
        elif url.path == "/token":
            asked = parse_qs(url.query)
            allowed = asked == {"service": ["registry"], "scope": ["repository:base:pull"]}
            refused = registry.refuses_token or not allowed
            self.send(403 if refused else 200, json.dumps({"token": TOKEN}).encode(), {})
        elif registry.wants_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            realm = f'realm="http://{registry.address}/token"'
            challenge = f'Bearer {realm},service="registry",scope="repository:base:pull"'
            self.send(401, b"{}", {"WWW-Authenticate": challenge})
        else:
            self.answer_manifest(url.path)

    def answer_manifest(self, path: str) -> None:
        registry = self.registry
        name, _, tag = path.removeprefix("/v2/").partition("/manifests/")
        manifest = registry.manifests.get(f"{name}:{tag}")
        if manifest is None:
            self.send(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', {})
        elif self.command == "HEAD" and not registry.knows_head:
            self.send(405, b"", {})
        else:
            stated = registry.states_digest
            headers = {} if stated is None else {"Docker-Content-Digest": stated or digest_of(manifest)}
            self.send(200, manifest, {"Content-Type": INDEX, **headers})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def has_real_registry() -> bool:
    return shutil.which("docker-registry") is not None


@contextmanager
def run_real_registry(folder: Path) -> Iterator[str]:
    """Docker's own registry as a process; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{address}'}}\nvalidation: {{disabled: true}}\n"
    )
    quiet = subprocess.DEVNULL
    with subprocess.Popen(["docker-registry", "serve", str(config)], stdout=quiet, stderr=quiet) as process:
        try:
            deadline = time.monotonic() + 20
            while not _answers(address):
                assert process.poll() is None and time.monotonic() < deadline
            yield address
        finally:
            process.terminate()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/v2/", timeout=1).is_success
    except httpx.TransportError:
        return False


def push(address: str, name: str, tag: str, manifest: bytes) -> None:
    """Put a manifest into a real registry."""
    url = f"http://{address}/v2/{name}/manifests/{tag}"
    httpx.put(url, content=manifest, headers={"Content-Type": INDEX}).raise_for_status()
