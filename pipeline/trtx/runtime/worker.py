"""A thread that runs programs, so that the engine can do other work meanwhile."""

from __future__ import annotations

import threading
import time
import weakref
from queue import SimpleQueue

import torch
from torch import Tensor

from trtx.runtime.program import Programs

# The logits, and when the program began and ended on time.perf_counter; or what it raised.
Result = tuple[Tensor, float, float] | Exception

# A step under way when the engine goes is waited for this long.
MAX_WAIT_S = 10.0


class ProgramThread:
    """Runs one step at a time, in the order given. The thread ends with this object."""

    def __init__(self, programs: Programs, num_threads: int | None) -> None:
        self._tasks: SimpleQueue[tuple[Tensor, ...] | None] = SimpleQueue()
        self._results: SimpleQueue[Result] = SimpleQueue()
        # A daemon: a process whose program hangs can end all the same.
        thread = threading.Thread(
            target=_run, args=(programs, num_threads, self._tasks, self._results), name="programs", daemon=True
        )
        thread.start()
        # Also at the end of the process, before the interpreter goes: native code that comes back later would abort.
        weakref.finalize(self, _end, thread, self._tasks)

    def submit(self, inputs: tuple[Tensor, ...]) -> None:
        """Start a step; the inputs must not change before its result is there."""
        self._tasks.put(inputs)

    def result(self) -> tuple[Tensor, float, float]:
        """Wait for the step submitted first: its logits, when its program began and when it ended.

        Raises what the program raised.
        """
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result


def _end(thread: threading.Thread, tasks: SimpleQueue[tuple[Tensor, ...] | None]) -> None:
    tasks.put(None)
    thread.join(MAX_WAIT_S)


def _run(
    programs: Programs,
    num_threads: int | None,
    tasks: SimpleQueue[tuple[Tensor, ...] | None],
    results: SimpleQueue[Result],
) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    while (inputs := tasks.get()) is not None:
        try:
            began_s = time.perf_counter()
            logits_NV = programs.step(*inputs)
            results.put((logits_NV, began_s, time.perf_counter()))
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must hear of it
            results.put(error)
        # Not kept until the next step: they may be large.
        del inputs
