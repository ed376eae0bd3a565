"""Runs steps as processes of this machine, several at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from trtx.processes import signal_group, start_process
from trtx.runners.base import Ended, Task

# How often a waiting driver looks at its children; a step takes seconds to hours.
POLL_S = 0.05


class LocalRunner:
    """At most `max_parallel` tasks at once; an exclusive task runs alone."""

    def __init__(self, max_parallel: int) -> None:
        self._max_parallel = max_parallel
        self._running: dict[str, tuple[Task, subprocess.Popen[bytes]]] = {}

    def has_room(self, *, exclusive: bool) -> bool:
        if any(other.exclusive for other, _ in self._running.values()):
            return False
        return not self._running if exclusive else len(self._running) < self._max_parallel

    def start(self, task: Task) -> None:
        environment = {**task.environment, "TRTX_PARENT_PID": str(os.getpid())}
        process = start_process(task.argv, folder=task.folder, environment=environment, log=task.log)
        self._running[task.step] = (task, process)

    def wait(self, timeout_s: float) -> list[Ended]:
        deadline = time.monotonic() + timeout_s
        while True:
            ended = [step for step, (_, process) in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= deadline or not self._running:
                return [self._reap(step) for step in ended]
            time.sleep(POLL_S)

    def _reap(self, step: str) -> Ended:
        _, process = self._running.pop(step)
        signal_group(process, signal.SIGKILL)  # Compilers and helpers the step left behind.
        code = process.returncode
        return Ended(step, exit_code=None, signal=-code) if code < 0 else Ended(step, exit_code=code, signal=None)

    def stop(self, grace_s: float) -> None:
        for _, process in self._running.values():
            signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for _, process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                signal_group(process, signal.SIGKILL)
                process.wait()
            signal_group(process, signal.SIGKILL)
        self._running.clear()


def make_runner(max_parallel: int) -> LocalRunner:
    return LocalRunner(max_parallel)
