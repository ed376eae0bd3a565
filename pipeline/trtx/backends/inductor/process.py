"""Runs modules of this backend in fresh processes, whose environment cannot change what they make."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtx.processes import start_process

# Variables that would steer torch's compiler from outside the step's parameters.
COMPILER_PREFIXES = ("TORCH", "PYTORCH", "AOT_INDUCTOR", "AOTINDUCTOR", "AOTI_", "ATEN_", "TRITON")
TAIL_LINES = 20


@dataclass(frozen=True)
class Child:
    """A module with a `main` to run as `python -m module *arguments`, its output going to `log`."""

    module: str
    arguments: tuple[str, ...]
    log: Path
    extra_environ: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, and the last lines it printed."""

    code: int
    tail: list[str]


def run_children(children: Sequence[Child], cwd: Path) -> list[Ended]:
    """Run children side by side until all have ended; the first failure stops the others.

    Whatever happens here, no child outlives the call.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_started(child, cwd)) for child in children]
        waiting = list(running)
        while waiting:
            # Each in turn with a short limit: a failure of any must be seen while the others still run.
            process = waiting.pop(0)
            try:
                if process.wait(timeout=0.05) != 0:
                    break
            except subprocess.TimeoutExpired:
                waiting.append(process)
        for process in waiting:
            process.terminate()
        codes = [process.wait() for process in running]
    return [Ended(code, _tail(child.log)) for code, child in zip(codes, children, strict=True)]


def clean_environ(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what steers the compiler, with a fixed hash seed and `extra`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(COMPILER_PREFIXES)}
    return {**kept, "PYTHONHASHSEED": "0", **extra}


@contextlib.contextmanager
def _started(child: Child, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-W", "ignore::FutureWarning", "-m", child.module, *child.arguments]
    environ = clean_environ(child.extra_environ)
    process = start_process(argv, folder=cwd, environment=environ, log=child.log, own_group=False)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _tail(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL_LINES:]
