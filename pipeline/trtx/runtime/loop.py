"""An engine in a thread of its own, for callers in one event loop: streams that carry its outputs into asyncio.

Outputs come to the event loop once a step. See driver.py for callers in any thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

from trtx.runtime.engine import Engine
from trtx.runtime.owner import EngineFailed, EngineOwner
from trtx.runtime.request import Output, Request


class EngineThread:
    """Runs an engine in a thread of its own. All methods belong to the event loop that called `start`.

    `on_outputs` is called in the event loop with the outputs of every step, before the streams see them.
    """

    def __init__(self, engine: Engine, on_outputs: Callable[[Sequence[Output]], None] | None = None) -> None:
        self.engine = engine
        self._on_outputs = on_outputs
        self._streams: dict[int, Stream] = {}
        self._failure: str | None = "the engine has not been started"
        self._owner = EngineOwner(engine, self._hand_over, self._fail)
        self._loop: asyncio.AbstractEventLoop

    @property
    def failure(self) -> str | None:
        """Why the engine serves nobody; None while it does."""
        return self._failure

    def start(self) -> None:
        """Start the thread; outputs go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._failure = None
        self._owner.start()

    def stream(self, requests: Sequence[Request]) -> Stream:
        """A stream of the outputs of requests made by `engine.make_request`; nothing is queued until it is entered."""
        return Stream(self, requests)

    def close(self, reason: str) -> None:
        """Serve nobody any more: streams that are open raise EngineFailed with the reason, new ones too."""
        self._failure = self._failure or reason
        for stream in set(self._streams.values()):
            stream.put(EngineFailed(reason))
        self._streams.clear()

    async def stop(self) -> None:
        """Close, and end the thread after the step it is in."""
        self.close("the server is shutting down")
        await asyncio.to_thread(self._owner.end)

    def _submit(self, stream: Stream) -> None:
        if self._failure is not None:
            raise EngineFailed(self._failure)
        for request in stream.requests:
            self._streams[request.id] = stream
            self._owner.post(partial(self.engine.add_request, request))

    def _cancel(self, stream: Stream) -> None:
        for request in stream.requests:
            if self._streams.pop(request.id, None) is not None:
                self._owner.post(partial(self.engine.cancel, request))

    def _hand_over(self, outputs: Sequence[Output]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _fail(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self.close, reason)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        if self._on_outputs is not None:
            self._on_outputs(outputs)
        for output in outputs:
            stream = self._streams.get(output.request.id)
            if stream is not None:
                stream.put(output)
            if output.finish_reason is not None:
                self._streams.pop(output.request.id, None)


class Stream:
    """Outputs of one or more requests, as they come. Leaving it cancels what has not ended and frees its blocks.

        with thread.stream(requests) as stream:
            async for output in stream: ...

    Entering raises EngineFailed when the engine is not running, iterating when it stops meanwhile. A reader that is
    slow keeps only its own outputs waiting.
    """

    def __init__(self, thread: EngineThread, requests: Sequence[Request]) -> None:
        self.requests = requests
        self._items: deque[Output | EngineFailed] = deque()
        self._arrived = asyncio.Event()
        self._thread = thread
        self._open = len(requests)

    def __enter__(self) -> Stream:
        self._thread._submit(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread._cancel(self)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Output:
        if self._open == 0:
            raise StopAsyncIteration
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        output = self._items.popleft()
        if isinstance(output, EngineFailed):
            raise output
        # A reader that fell behind gets in one piece what has come meanwhile.
        while len(self.requests) == 1 and self._items and isinstance(later := self._items[0], Output):
            self._items.popleft()
            output = output.joined(later)
        self._open -= output.finish_reason is not None
        return output

    def put(self, item: Output | EngineFailed) -> None:
        """Give the reader something more; belongs to the EngineThread."""
        self._items.append(item)
        self._arrived.set()
