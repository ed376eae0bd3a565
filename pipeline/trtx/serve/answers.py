"""From a stream of engine outputs to an HTTP response, whole or in events. A client that leaves frees its blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trtx.runtime.loop import EngineFailed, Stream
from trtx.serve.problems import engine_unavailable
from trtx.serve.replies import DONE_EVENT, Choice, Reply, Usage, make_event

# What nginx logs for a client that left; nobody reads it.
STATUS_CLIENT_GONE = 499


async def answer_whole(http: Request, stream: Stream, reply: Reply) -> Response:
    """Wait for all choices, or for the client to leave."""
    with stream:
        work = asyncio.create_task(_collect(stream))
        gone = asyncio.create_task(_wait_until_gone(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=STATUS_CLIENT_GONE)
            choices = work.result()
        finally:
            work.cancel()
            gone.cancel()
    usage = Usage(_prompt_tokens(stream), sum(choice.num_tokens for choice in choices))
    return JSONResponse(reply.whole(choices, usage))


class EventAnswer(StreamingResponse):
    """Server-sent events while the engine works; requests are queued when sending begins and cancelled when it ends."""

    def __init__(self, stream: Stream, reply: Reply, *, include_usage: bool) -> None:
        events = _write_events(stream, reply, include_usage=include_usage)
        # A proxy that collects a response before passing it on would defeat the purpose.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stream:
            await super().__call__(scope, receive, send)


async def _collect(stream: Stream) -> list[Choice]:
    choices = {request.id: Choice() for request in stream.requests}
    async for output in stream:
        choice = choices[output.request.id]
        choice.text += output.text
        choice.num_tokens += len(output.token_ids)
        choice.finish_reason = output.finish_reason
    return list(choices.values())


async def _write_events(stream: Stream, reply: Reply, *, include_usage: bool) -> AsyncIterator[str]:
    # With include_usage every event has the field, null in all but the last.
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    index = {request.id: i for i, request in enumerate(stream.requests)}
    completion_tokens = 0
    if opening := reply.opening():
        yield reply.event(opening, **more)
    try:
        async for output in stream:
            completion_tokens += len(output.token_ids)
            if output.text or output.finish_reason:
                piece = reply.piece(index[output.request.id], output.text, output.finish_reason)
                yield reply.event([piece], **more)
    except EngineFailed as failed:
        yield make_event(engine_unavailable(failed).body())
        return
    if include_usage:
        yield reply.event([], usage=Usage(_prompt_tokens(stream), completion_tokens).as_json())
    yield DONE_EVENT


async def _wait_until_gone(http: Request) -> None:
    # The body has been read, so the next message says that the client left.
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _prompt_tokens(stream: Stream) -> int:
    return sum(len(request.prompt_ids) for request in stream.requests)
