"""An engine in a thread of its own, for callers in any thread. See loop.py for callers in one event loop.

What the engine makes of a request goes to the request's listener.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from trtx.runtime.engine import Engine
from trtx.runtime.owner import EngineFailed, EngineOwner
from trtx.runtime.request import Output, Request

# Called in the engine's thread with every output, or once with why none will come any more; it must be quick.
Listener = Callable[[Output | EngineFailed], None]


class EngineDriver:
    """Runs an engine. All methods may be called from any thread of the process that made it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._listeners: dict[Request, Listener] = {}
        self._failure: str | None = None
        self._owner = EngineOwner(engine, self._deliver, self._fail)
        self._owner.start()

    def submit(self, requests: Sequence[Request], listener: Listener) -> None:
        """Queue requests of `engine.make_request`. The last of each is an output with a finish_reason, or EngineFailed.

        Raises EngineFailed when the engine has stopped, and in a process that was forked from the one it runs in.
        """
        if os.getpid() != self._pid:
            raise EngineFailed("the engine runs in the process that this one was forked from: make one after the fork")
        with self._lock:
            if self._failure is not None:
                raise EngineFailed(self._failure)
            self._listeners.update(dict.fromkeys(requests, listener))
            self._owner.post(lambda: self._add(requests))

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests, waiting or running, and free their blocks; their listeners hear of it."""
        self._owner.post(lambda: self._cancel(requests))

    def stop(self, reason: str = "the engine was shut down") -> None:
        """Serve nobody any more, and end the thread after the step it is in. May be called twice."""
        if os.getpid() != self._pid:
            return
        self._fail(reason)
        self._owner.end()

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.add_request(request)

    def _cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request in self._listeners:
                self.engine.cancel(request)
                self._tell(Output(request, (), "", request.finish_reason, self.engine.clock()))

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self._tell(output)

    def _tell(self, output: Output) -> None:
        listener = self._listeners.get(output.request)
        if output.finish_reason is not None:
            with self._lock:
                self._listeners.pop(output.request, None)
        if listener is not None:
            listener(output)

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._failure = self._failure or reason
            listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener(EngineFailed(reason))
