"""What a runner is given and what it reports."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

# `runners: {name: {type: …}}` in a recipe → module with `make_runner`.
RUNNERS = {"local": "trtx.runners.local"}


@dataclass(frozen=True)
class Task:
    """One attempt of one step, ready to start.

    `environment` is complete: nothing else is inherited. `exclusive`: nothing else may run beside it (it measures).
    """

    step: str
    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    exclusive: bool = False


@dataclass(frozen=True)
class Ended:
    """A task that ended; `signal` is set instead of `exit_code` when it was killed."""

    step: str
    exit_code: int | None
    signal: int | None


class Runner(Protocol):
    """Interface of a runner."""

    def has_room(self, *, exclusive: bool) -> bool:
        """Whether another task may start now; an exclusive one needs the place to itself."""
        ...

    def start(self, task: Task) -> None:
        """Begin a task; returns at once."""
        ...

    def wait(self, timeout_s: float) -> list[Ended]:
        """Tasks that ended since the last call; waits for one at most `timeout_s` seconds."""
        ...

    def stop(self, grace_s: float) -> None:
        """End everything that still runs: ask, wait `grace_s` seconds, kill. Safe to call twice."""
        ...


class RunnerModule(Protocol):
    """Interface of a runner's module."""

    def make_runner(self, max_parallel: int) -> Runner: ...


def find_runner(kind: str) -> RunnerModule:
    """The module of a runner type."""
    return cast(RunnerModule, importlib.import_module(RUNNERS[kind]))
