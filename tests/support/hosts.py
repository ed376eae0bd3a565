"""A web server on loopback that never finishes its answer: for steps that must be caught half-way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from support.http_threads import serve_handler


@contextmanager
def stalling_server(files: dict[str, bytes], stalled: str) -> Iterator[tuple[str, threading.Event]]:
    """Serve `files` by path; a GET of `stalled` sends half of it and waits. Yields the URL and an event set by that."""
    reached, leave = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._head(files.get(self.path.lstrip("/")))

        def _head(self, content: bytes | None) -> bool:
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", '"1"')
            self.end_headers()
            return content is not None

        def do_GET(self) -> None:
            content = files.get(self.path.lstrip("/"))
            if not self._head(content) or content is None:
                return
            if self.path.lstrip("/") == stalled:
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                reached.set()
                leave.wait(120)
                return
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with serve_handler(Handler) as address:
        try:
            yield f"http://{address}", reached
        finally:
            leave.set()
