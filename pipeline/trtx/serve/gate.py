"""What every HTTP request passes before a route sees it: a name, a key, a size; and the line in the log after it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trtx.serve.problems import ApiProblem

REQUEST_ID = "x-request-id"
# A client's own name for a request is taken when it can stand in a header and a log.
GOOD_ID = re.compile(r"[!-~]{1,128}")
# Paths below it need a key where there are keys; health and metrics are for machines that have none.
GUARDED = "/v1/"
DEFAULT_MAX_BODY_BYTES = 8 << 20


@dataclass(frozen=True)
class Guard:
    """What is let in: bodies of at most `max_body_bytes`, and with `api_keys` only who has one of them."""

    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    api_keys: Sequence[str] = ()


class Gate:
    """An ASGI application around another. `log` gets one dictionary a request; there are never prompts in it."""

    def __init__(self, app: ASGIApp, guard: Guard, log: Callable[[dict[str, Any]], None] | None) -> None:
        self._app = app
        self._max_body_bytes = guard.max_body_bytes
        # Of equal length, so that comparing takes the same time for every key.
        self._digests = [_digest(key.encode()) for key in guard.api_keys]
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        figures: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, figures=figures)
        began_s, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            refusal = self._refuse(scope["path"], headers)
            if refusal is None:
                await self._app(scope, self._counted(receive), answer)
            else:
                await refusal(scope, receive, answer)
        except Exception:
            # What is outside of this turns it into a response.
            status = status or 500
            raise
        finally:
            if self._log is not None:
                self._log(
                    {
                        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                        "request_id": request_id,
                        "client": (scope.get("client") or [None])[0],
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "duration_s": round(time.perf_counter() - began_s, 6),
                        **figures,
                    }
                )

    def _refuse(self, path: str, headers: Headers) -> JSONResponse | None:
        if self._digests and path.startswith(GUARDED) and not self._knows(headers.get("authorization", "")):
            problem = ApiProblem("this server needs an API key that it knows", status=401, code="invalid_api_key")
            return JSONResponse(problem.body(), problem.status, headers={"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) <= self._max_body_bytes:
            return None
        problem = _too_large(self._max_body_bytes)
        # The rest of the body is not read: the connection cannot be used again.
        return JSONResponse(problem.body(), problem.status, headers={"connection": "close"})

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        # Headers are read as Latin-1, whatever the client meant.
        digest = _digest(key.strip().encode("latin-1"))
        # All of them are compared, whichever it is.
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() == "bearer" and any(known)

    def _counted(self, receive: Receive) -> Receive:
        """Ends a body that does not say how long it is and grows too long."""
        total = 0

        async def receive_counted() -> Message:
            nonlocal total
            message = await receive()
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                if total > self._max_body_bytes:
                    raise HTTPException(413, str(_too_large(self._max_body_bytes)))
            return message

        return receive_counted


def write_log_line(figures: dict[str, Any], write: Callable[[str], Any]) -> None:
    """One JSON object a line."""
    write(json.dumps(figures, separators=(",", ":")) + "\n")


def _too_large(max_body_bytes: int) -> ApiProblem:
    return ApiProblem(f"the body is larger than the {max_body_bytes} bytes that this server reads", status=413)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
