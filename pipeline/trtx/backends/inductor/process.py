"""Runs modules of this backend in fresh processes, whose environment cannot change what they make."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Variables that would steer torch's compiler from outside the step's parameters.
COMPILER_PREFIXES = ("TORCH", "PYTORCH", "AOT_INDUCTOR", "AOTINDUCTOR", "AOTI_", "ATEN_", "TRITON")
TAIL_LINES = 20

# prctl(2): the signal this process gets when its parent dies.
PR_SET_PDEATHSIG = 1


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


def die_with_parent() -> None:
    """Called by a child: end when the step that started it is killed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def _started(child: Child, cwd: Path):  # type: ignore[no-untyped-def]
    argv = [sys.executable, "-W", "ignore::FutureWarning", "-m", child.module, *child.arguments]
    with child.log.open("wb") as log:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=clean_environ(child.extra_environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _tail(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL_LINES:]
