"""The one thread that owns an engine: what EngineDriver (any thread) and EngineThread (one event loop) have in common.

Compiled programs must never be entered by two threads, so everything an engine does happens in its thread. Others
talk to it through a queue of commands.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Sequence

from trtx.runtime.engine import Engine
from trtx.runtime.request import Output

logger = logging.getLogger(__name__)


class EngineFailed(RuntimeError):
    """The engine has stopped and serves nobody any more; the text says why."""


class EngineOwner:
    """Runs steps while there are any, and commands between them.

    `deliver` gets the outputs of every step that had some; `fail` once why no more will come, where the engine broke.
    Both are called in the thread and must be quick. All methods may be called from any.
    """

    def __init__(
        self, engine: Engine, deliver: Callable[[Sequence[Output]], None], fail: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._fail = fail
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon: a process that is told to end at once must not wait for a step.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        # What watches programs lives as long as they do, and must not keep their engine.
        hear = weakref.WeakMethod(self._hear)
        self._engine.when_broken(lambda error: found(error) if (found := hear()) else None)
        self._thread.start()

    def post(self, command: Callable[[], None]) -> None:
        """Have something done in the thread after the step it is in; in order."""
        self._commands.put(command)

    def end(self) -> None:
        """End the thread after the step it is in, and wait for that, unless this is the thread itself."""
        self._commands.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _hear(self, error: Exception) -> None:
        """Let programs that broke fail the engine, also where it waits for something to do."""

        def fail() -> None:
            raise error

        self.post(fail)

    def _run(self) -> None:
        try:
            self._engine.use_thread()
            while self._obey():
                if outputs := self._engine.step():
                    self._deliver(outputs)
        # Whatever broke, those who wait must hear of it.
        except Exception as error:
            logger.exception("the engine has failed")
            self._fail(f"the engine has failed: {error}")

    def _obey(self) -> bool:
        """Carry out what was asked; wait for a command when there is nothing to run. False when told to end."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.has_work)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
