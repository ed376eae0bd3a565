"""A request on its way, as its caller holds it: to wait for, to await, to watch, to abort. Imports no torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager, suppress

from trtx.runtime.driver import EngineDriver
from trtx.runtime.owner import EngineFailed
from trtx.runtime.request import Output, Request
from trtx.runtime.results import Choice, PositionLogprobs, RequestOutput, describe_prompt


class GenerationFailed(RuntimeError):
    """A request ended by an error of its own, such as a logits processor that failed; the text says which."""


class Generation:
    """What `LLM.generate_async` returns, for one reader in any thread or event loop.

    `result()` waits for the end, and so does `await`. `async for` gives a RequestOutput whenever there is something
    new: with all so far, so that a reader that is slow misses nothing and keeps nothing waiting. Leaving the loop early
    aborts the request; whoever only stops to await it does not.

    Waiting raises GenerationFailed when the request failed, and EngineFailed when the engine stopped.
    """

    def __init__(
        self,
        driver: EngineDriver,
        requests: Sequence[Request],
        prompt: str | None,
        *,
        streaming: bool = True,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.request_id = requests[0].id
        self.prompt = prompt
        self.prompt_token_ids = list(requests[0].prompt_ids)
        tokenizer = driver.engine.tokenizer
        self._streaming = streaming
        self._driver = driver
        self._requests = requests
        self._choices = {request: Choice(index, request, tokenizer) for index, request in enumerate(requests)}
        self._changed = threading.Condition()
        self._version = 0
        self._open = len(requests)
        self._error: Exception | None = None
        self._wake: list[Callable[[], None]] = []
        self._on_end = on_end
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None
        driver.submit(requests, self._take)

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._is_over()

    def abort(self) -> None:
        """End the request and free its blocks; choices that have not ended get the finish_reason "cancelled"."""
        self._driver.cancel(self._requests)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end, at most `timeout` seconds. Raises TimeoutError after that."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.finished, timeout):
                raise TimeoutError(f"request {self.request_id} has not ended within {timeout} s")
            return self._look()

    def __await__(self) -> Generator[None, None, RequestOutput]:
        return self._wait().__await__()

    async def _wait(self) -> RequestOutput:
        with self._arrivals() as arrived:
            while not self.finished:
                await arrived.wait()
                arrived.clear()
        with self._changed:
            return self._look()

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        if not self._streaming:
            yield await self._wait()
            return
        seen = 0
        try:
            with self._arrivals() as arrived:
                while True:
                    with self._changed:
                        found = self._look() if self._version > seen or self.finished else None
                        seen = self._version
                    if found is not None:
                        yield found
                        if found.finished:
                            return
                    await arrived.wait()
                    arrived.clear()
        finally:
            if not self.finished:
                self.abort()

    @contextmanager
    def _arrivals(self) -> Generator[asyncio.Event, None, None]:
        """An event of the running loop that is set whenever something new is there."""
        arrived, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            # The loop may be closed by somebody who leaves without saying so.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.set)

        with self._changed:
            self._wake.append(wake)
        try:
            yield arrived
        finally:
            with self._changed:
                self._wake.remove(wake)

    def _is_over(self) -> bool:
        return self._open == 0 or self._error is not None

    def _look(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        outputs = [choice.look() for choice in self._choices.values()]
        if self._prompt_logprobs is None:
            self._prompt_logprobs = describe_prompt(self._requests[0], self._driver.engine.tokenizer)
        ended = self._open == 0
        return RequestOutput(self.request_id, self.prompt, self.prompt_token_ids, outputs, ended, self._prompt_logprobs)

    def _take(self, item: Output | EngineFailed) -> None:
        """Called in the engine's thread."""
        with self._changed:
            if self._is_over():
                return
            if isinstance(item, EngineFailed):
                self._error = item
            else:
                self._choices[item.request].add(item)
                if item.finish_reason == "error":
                    self._error = GenerationFailed(f"request {self.request_id} ended: {item.request.failure}")
                self._open -= item.finish_reason is not None
            self._version += 1
            ended = self._is_over()
            if ended:
                self._changed.notify_all()
            for wake in self._wake:
                wake()
        if ended:
            if isinstance(self._error, GenerationFailed):
                self.abort()
            self._on_end()
