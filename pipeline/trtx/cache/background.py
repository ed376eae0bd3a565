"""Threads that may hang: a file system that does not answer must never keep a process from leaving."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class DaemonPool:
    """At most `size` daemon threads, started when there is work.

    Unlike those of concurrent.futures they are not waited for when the process ends.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], Result]) -> Future[Result]:
        """Run a function in one of the threads, in the order of submission."""
        future: Future[Result] = Future()
        with self._lock:
            self._work.put((future, function))
            if self._work.qsize() > self._idle and len(self._threads) < self._size:
                thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            future, function = self._work.get()
            with self._lock:
                self._idle -= 1
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  It belongs to whoever asks for the result.
                future.set_exception(error)
            del future, function
