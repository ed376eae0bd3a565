"""A Hugging Face hub on loopback: the part of its HTTP interface that huggingface_hub uses to read a repository.

Written from what the library sends and reads: model and dataset info by revision with blob metadata, HEAD and ranged
GET of resolve/, large files behind a redirect, X-Repo-Commit, X-Linked-Etag, X-Linked-Size, X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from support.http_threads import serve_handler

LARGE_SUFFIXES = (".safetensors", ".bin", ".parquet", ".gguf")


def commit_of(name: str) -> str:
    """A commit that looks like one."""
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """Files at one commit. `main` and any name in `references` point to it."""

    files: dict[str, bytes]
    commit: str = commit_of("first")
    references: tuple[str, ...] = ("main",)
    private: bool = False
    gated: bool = False

    def knows(self, revision: str) -> bool:
        return revision == self.commit or revision in self.references


@dataclass
class Hub:
    """What the server serves and how it misbehaves. A token may read what is in `readers` of it."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)  # "models/owner/name", "datasets/owner/name"
    tokens: dict[str, set[str]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)  # files served with one byte changed
    cuts: dict[str, list[int]] = field(default_factory=dict)  # file → bytes sent before each dropped connection
    down: bool = False  # every answer is 503
    login_page: bool = False  # every answer is a web page, as from a proxy that wants a login
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers

    def reset(self) -> None:
        self.repositories.clear()
        self.tokens.clear()
        self.corrupt.clear()
        self.cuts.clear()
        self.requests.clear()
        self.down = self.login_page = False


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run the server in a thread; yields the hub to fill."""
    hub = Hub()

    class Handler(HubHandler):
        pass

    Handler.hub = hub
    with serve_handler(Handler) as address:
        hub.endpoint = f"http://{address}"
        yield hub


class HubHandler(BaseHTTPRequestHandler):
    """One request.

    Paths: /api/{kind}/{repo}/revision/{rev}, /[datasets/]{repo}/resolve/{rev}/{file}, /cdn/{kind}/{repo}/{file}.
    """

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def answer(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        parts = [unquote(part) for part in path.split("/")]
        if self.hub.down:
            self.refuse(503, "", "Service Unavailable")
        elif self.hub.login_page:
            self.send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        elif parts[0] == "api" and len(parts) == 6 and parts[4] == "revision":
            self.answer_info(parts[1], "/".join(parts[2:4]), parts[5])
        elif parts[0] == "api":  # The library also asks for things that have nothing to do with repositories.
            self.refuse(404, "", "Not Found")
        elif parts[0] == "cdn":
            self.answer_bytes(parts[1], "/".join(parts[2:4]), "/".join(parts[4:]))
        else:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
            self.answer_resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def find(self, kind: str, name: str, revision: str, *, content: bool) -> Repository | None:
        """The repository if this request may see it; otherwise the refusal has been sent."""
        repository = self.hub.repositories.get(f"{kind}/{name}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and name not in self.hub.tokens.get(token, ())):
            # The real hub answers 401 without a token, so as not to tell private from missing.
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository.gated and content and name not in self.hub.tokens.get(token, ()):
            self.refuse(403 if token else 401, "GatedRepo", f"Access to {kind} {name} is restricted.")
        elif not repository.knows(revision):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def answer_info(self, kind: str, name: str, revision: str) -> None:
        repository = self.find(kind, name, revision, content=False)
        if repository is None:
            return
        siblings = [describe(file, content) for file, content in repository.files.items()]
        body = json.dumps({"_id": "1", "id": name, "sha": repository.commit, "private": False, "siblings": siblings})
        self.send(200, body.encode(), {"Content-Type": "application/json"})

    def answer_resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        repository = self.find(kind, name, revision, content=True)
        if repository is None:
            return
        content = repository.files.get(file)
        commit = {"X-Repo-Commit": repository.commit}
        if content is None:
            self.refuse(404, "EntryNotFound", "Entry not found", commit)
        elif file.endswith(LARGE_SUFFIXES):
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            # Another host, as on the real hub: a library that follows redirects of its own host only stops here.
            elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
            self.send(302, b"", {"Location": f"{elsewhere}/cdn/{kind}/{name}/{file}", **commit, **linked})
        else:
            self.send_content(file, content, {"ETag": f'"{git_sha1(content)}"', **commit})

    def answer_bytes(self, kind: str, name: str, file: str) -> None:
        content = self.hub.repositories[f"{kind}/{name}"].files[file]
        self.send_content(file, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def send_content(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        if file in self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        total, start = len(content), 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers = {**headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}
        self.send(206 if asked else 200, content[start:], headers, file)

    def send(self, status: int, body: bytes, headers: dict[str, str], file: str = "") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cuts.get(file)
        self.wfile.write(body[: cuts.pop(0)] if cuts else body)
        self.close_connection = cuts is not None

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        coded = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self.send(status, body, {**coded, "X-Error-Message": message, **(headers or {})})


def describe(name: str, content: bytes) -> dict[str, object]:
    """One entry of `siblings`, as with ?blobs=true."""
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
    if name.endswith(LARGE_SUFFIXES):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return entry


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
