"""A step of several processes: rank 0 is the step, the others work for it.

    attempts/<n>/ranks/staged.json  written by rank 0: the folder that all ranks fill; the others wait for it
    attempts/<n>/ranks/<r>.json     written by rank r: how it ended

Rank 0 alone takes the key's lease, publishes the entry and writes result.json. When another rank fails the step fails
with its words, whatever rank 0 is doing: a rank that waits for others in native code hears no signal.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.errors import BY_NAME, StepFailed, TrtxError, UsageProblem
from trtx.files import write_text
from trtx.stages.job import RANK_VARIABLE, RANKS_FOLDER, RANKS_VARIABLE, RESULT_NAME, Failure

LOOK_S = 0.1
# A rank that failed stays so long, so that rank 0 can say why before the scheduler ends all of them.
LINGER_S = 20.0
# How long rank 0 has to leave by itself, and how long the word of a rank that died may take to appear.
LEAVE_S = 5.0
# After the first word of a failure: a rank that died leaves its neighbours alone before anybody can tell of its death.
SETTLE_S = 1.0


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this one is."""

    number: int = 0
    count: int = 1


def read_rank(environ: Mapping[str, str]) -> Rank:
    """The rank that a runner gave this process. Raises UsageProblem for what cannot be one."""
    try:
        rank = Rank(int(environ.get(RANK_VARIABLE, "0")), int(environ.get(RANKS_VARIABLE, "1")))
    except ValueError as error:
        raise UsageProblem(f"{RANK_VARIABLE} and {RANKS_VARIABLE} are no numbers", why=str(error)) from error
    if not 0 <= rank.number < rank.count:
        raise UsageProblem(f"{RANK_VARIABLE}={rank.number} is no rank of {rank.count}")
    return rank


class OtherRanks:
    """All ranks but 0, from the side of rank 0; `folder` is the attempt's."""

    def __init__(self, step: str, folder: Path, rank: Rank) -> None:
        self._step, self._folder, self._count = step, folder / RANKS_FOLDER, rank.count

    @contextmanager
    def working(self, staged: Path, give_up: Callable[[TrtxError], None]) -> Iterator[None]:
        """Have the others work while the body does, and wait for them. Raises the error of the first that failed.

        `give_up` is called, from another thread, when the body does not leave after another rank failed.
        """
        if self._count == 1:
            yield
            return
        write_text(self._folder / "staged.json", json.dumps({"folder": str(staged)}))
        over = threading.Event()
        watching = threading.Thread(target=self._watch, args=(over, give_up), daemon=True)
        watching.start()
        try:
            yield
            while len(self._ends()) < self._count - 1:
                time.sleep(LOOK_S)
        except BaseException:
            # Whom a failed rank leaves alone fails too, a moment later; what counts is who was first.
            if self._wait_for_failure(LEAVE_S):
                time.sleep(SETTLE_S)
                if failure := self._failure():
                    raise failure from None
            raise
        finally:
            over.set()
            watching.join()
        if failure := self._failure():
            raise failure

    def _watch(self, over: threading.Event, give_up: Callable[[TrtxError], None]) -> None:
        while not over.wait(LOOK_S):
            if self._failure() and not over.wait(LEAVE_S) and (failure := self._failure()):
                give_up(failure)
                return

    def _wait_for_failure(self, seconds: float) -> TrtxError | None:
        deadline = time.monotonic() + seconds
        while (failure := self._failure()) is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return failure

    def _ends(self) -> dict[int, dict[str, Any]]:
        found = {number: _read(self._folder / f"{number}.json") for number in range(1, self._count)}
        return {number: end for number, end in found.items() if end is not None}

    def _failure(self) -> TrtxError | None:
        """The error of the rank that died, or else failed, first, with its number."""
        failed = {number: end for number, end in self._ends().items() if end["failure"] is not None}
        if not failed:
            return None
        number = min(failed, key=lambda rank: (not failed[rank].get("died", False), failed[rank]["time"]))
        failure = Failure.model_validate(failed[number]["failure"])
        kind = BY_NAME.get(failure.kind, StepFailed)
        where = f"rank {number} of {self._step} on {failed[number]['host']}"
        return kind(f"{where}: {failure.what}", why=failure.why, fix=failure.fix)


def wait_for_stage(folder: Path) -> Path | None:
    """Where rank 0 stages the output of an attempt; None when there is nothing to do, since it has ended."""
    while True:
        if (staged := _read(folder / RANKS_FOLDER / "staged.json")) is not None:
            return Path(staged["folder"])
        if (folder / RESULT_NAME).exists():
            return None
        time.sleep(LOOK_S)


def tell_end(folder: Path, rank: Rank, failure: Failure | None) -> None:
    """Say how a rank other than 0 ended; after a failure wait until rank 0 has told of it."""
    body = {"failure": failure.model_dump() if failure else None, "host": _host(), "time": time.time()}
    write_text(folder / RANKS_FOLDER / f"{rank.number}.json", json.dumps(body))
    deadline = time.monotonic() + LINGER_S
    while failure is not None and not (folder / RESULT_NAME).exists() and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document
