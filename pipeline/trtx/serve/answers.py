"""From a stream of engine outputs to an HTTP response, whole or in events. A client that leaves frees its blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trtx.runtime.loop import Stream
from trtx.runtime.owner import EngineFailed
from trtx.runtime.request import Output, Sampled
from trtx.serve.problems import engine_unavailable
from trtx.serve.replies import DONE_EVENT, Choice, Reply, Usage, make_event

# What nginx logs for a client that left; nobody reads it.
STATUS_CLIENT_GONE = 499


async def answer_whole(http: Request, call: Call) -> Response:
    """Wait for all choices, or for the client to leave."""
    with call, call.stream:
        work = asyncio.create_task(_collect(call))
        gone = asyncio.create_task(_wait_until_gone(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=STATUS_CLIENT_GONE)
            choices = work.result()
        finally:
            work.cancel()
            gone.cancel()
    call.note(choices)
    return JSONResponse(call.reply.whole(choices, call.usage(choices)))


class EventAnswer(StreamingResponse):
    """Server-sent events while the engine works; requests are queued when sending begins and cancelled when it ends.

    What a client does not read stays here, and the engine does not wait for it: at most the connection's send buffer
    and the outputs of its own request, which `max_tokens` and `n` bound and a single choice joins into one.
    """

    def __init__(self, call: Call, *, include_usage: bool) -> None:
        events = _write_events(call, include_usage=include_usage)
        # A proxy that collects a response before passing it on would defeat the purpose.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._call, self._call.stream:
            await super().__call__(scope, receive, send)


@dataclass
class Call:
    """One call of an endpoint that generates: its requests in a stream, `num_choices` of them for every prompt.

    `figures` are for the log; `release` gives its place in the queue back.
    """

    stream: Stream
    reply: Reply
    num_choices: int
    figures: dict[str, Any]
    release: Callable[[], None]

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def usage(self, choices: Sequence[Choice]) -> Usage:
        """Tokens of all prompts and choices."""
        prompts = self.stream.requests[:: self.num_choices]
        return Usage(
            sum(len(request.prompt_ids) for request in prompts),
            sum(choice.num_tokens for choice in choices),
            sum(request.num_cached for request in prompts),
        )

    def note(self, choices: Sequence[Choice]) -> None:
        """Keep what the log tells about an answer that has ended."""
        usage = self.usage(choices)
        self.figures["prompt_tokens"] = usage.prompt_tokens
        self.figures["completion_tokens"] = usage.completion_tokens
        self.figures["finish_reasons"] = [choice.finish_reason for choice in choices]


def _take(choice: Choice, output: Output) -> Choice:
    """Add an output to a choice; returns what it added."""
    request = output.request
    piece = Choice(
        output.text,
        len(output.token_ids),
        output.finish_reason,
        request.stop_reason if output.finish_reason else None,
        list(output.logprobs),
    )
    if request.scores_prompt and request.params.logprobs is not None and choice.is_fresh:
        piece.prompt = [Sampled(request.prompt_ids[0]), *request.prompt_scores]
    choice.is_fresh = False
    choice.num_tokens += piece.num_tokens
    choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
    return piece


async def _collect(call: Call) -> list[Choice]:
    choices = {request.id: Choice() for request in call.stream.requests}
    texts: dict[int, list[str]] = {request.id: [] for request in call.stream.requests}
    async for output in call.stream:
        piece = _take(choices[output.request.id], output)
        texts[output.request.id].append(piece.text)
        choices[output.request.id].logprobs += piece.logprobs
        choices[output.request.id].prompt = piece.prompt or choices[output.request.id].prompt
    for id, choice in choices.items():
        choice.text = "".join(texts[id])
    return list(choices.values())


async def _write_events(call: Call, *, include_usage: bool) -> AsyncIterator[str]:
    # With include_usage every event has the field, null in all but the last.
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    reply, requests = call.reply, call.stream.requests
    index = {request.id: i for i, request in enumerate(requests)}
    choices = [Choice() for _ in requests]
    for opening in reply.opening(len(requests)):
        yield reply.event([opening], **more)
    try:
        async for output in call.stream:
            place = index[output.request.id]
            if piece := reply.piece(place, _take(choices[place], output)):
                yield reply.event([piece], **more)
    except EngineFailed as failed:
        yield make_event(engine_unavailable(failed).body())
        return
    finally:
        call.note(choices)
    if include_usage:
        yield reply.event([], usage=call.usage(choices).as_json())
    yield DONE_EVENT


async def _wait_until_gone(http: Request) -> None:
    # The body has been read, so the next message says that the client left.
    while (await http.receive())["type"] != "http.disconnect":
        pass
