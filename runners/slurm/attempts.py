"""The files of a task's attempts, written on the node and by the driver: the only evidence that decides.

    <step>/claims/<n>.json              who may run the step: one line of a log whose entries are never changed
    <step>/attempts/<m>/heartbeat.json  changes as long as the attempt's process lives
    <step>/attempts/<m>/end.json        how the attempt's process ended
    <step>/attempts/<m>/result.json     what the step says of itself

A claim is a hard link, so of many that want one number exactly one gets it, on network file systems too. Numbers are
taken in order and each claimant reads all smaller ones, so all agree on what came before what:

- the first start of a submission's token owns it; starts of another job with that token are duplicates;
- a revocation ends a token: what has not started never will, what runs ends itself at its next heartbeat;
- whoever starts waits until the attempt before it has ended or fell silent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trtx.files import canonical_json, disk_errors

EndState = Literal["done", "failed", "stopped", "killed", "blocked", "refused"]


@dataclass(frozen=True)
class Claim:
    """One entry of a step's log of claims. `cause`, `what` and `retried` (a new round follows) are of revocations."""

    kind: Literal["start", "revoke"]
    token: str
    job: str = ""
    index: int = -1
    restart: int = 0
    node: str = ""
    time: float = 0.0
    cause: str = ""
    what: str = ""
    retried: bool = False
    number: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    `done` and `failed`: the step ended by itself. `stopped`: asked to, by "limit" (its time), "signal" (from outside)
    or "superseded". `killed`: by a signal nobody saw coming. `blocked`: an input is missing. `refused`: the node is not
    what was asked for. `cause` is set where the node, or the driver that wrote this after the job's death, knows it.
    """

    state: EndState
    exit_code: int | None = None
    signal: int | None = None
    by: str = ""
    cause: str = ""
    what: str = ""
    node: str = ""
    time: float = 0.0
    writer: Literal["node", "driver"] = "node"


@dataclass(frozen=True)
class Attempt:
    """One start that was allowed to run. `end` is None while it runs, and for ever when it was killed with its node."""

    claim: Claim
    end: End | None
    ended_well: bool
    # Whether the step left its own result, which it does last.
    has_result: bool

    @property
    def number(self) -> int:
        return self.claim.attempt


@dataclass(frozen=True)
class History:
    """All that a step's files tell. `attempts` are the valid ones, in order."""

    claims: tuple[Claim, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def done(self) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.ended_well), None)

    def revocation(self, token: str) -> Claim | None:
        return next((claim for claim in self.claims if claim.kind == "revoke" and claim.token == token), None)

    def last(self, token: str) -> Attempt | None:
        """The latest attempt of a token."""
        return next((item for item in reversed(self.attempts) if item.claim.token == token), None)


def take_claim(step_folder: Path, claim: Claim) -> tuple[Claim, tuple[Claim, ...]]:
    """Append to the log of claims; returns the entry with its numbers and all entries before it."""
    folder = step_folder / "claims"
    number = max((claim.number for claim in read_claims(step_folder)), default=0) + 1
    while True:
        taken = dataclasses.replace(claim, number=number)
        if create_once(folder / f"{number}.json", canonical_json(dataclasses.asdict(taken))):
            earlier = tuple(item for item in read_claims(step_folder, number) if item.number < number)
            attempt = 1 + sum(item.kind == "start" for item in earlier) if claim.kind == "start" else 0
            return dataclasses.replace(taken, attempt=attempt), earlier
        number += 1


def read_claims(step_folder: Path, at_least: int = 0) -> list[Claim]:
    """All claims in order; entries up to `at_least` are opened even when a listing does not show them yet."""
    folder = step_folder / "claims"
    with contextlib.suppress(OSError):
        names = [int(path.stem) for path in folder.iterdir() if re.fullmatch(r"\d+\.json", path.name)]
        at_least = max([at_least, *names])
    found, starts = [], 0
    for number in range(1, at_least + 1):
        document = read_file(folder / f"{number}.json")
        if document is not None:
            starts += document["kind"] == "start"
            attempt = starts if document["kind"] == "start" else 0
            found.append(Claim(**{**document, "number": number, "attempt": attempt}))
    return found


def valid_starts(claims: Sequence[Claim]) -> list[Claim]:
    """Starts that may run: by the owner of their token, once per restart, before the token was revoked."""
    owners: dict[str, str] = {}
    seen: set[tuple[str, int]] = set()
    revoked: set[str] = set()
    valid = []
    for claim in claims:
        if claim.kind == "revoke":
            revoked.add(claim.token)
        elif claim.token not in revoked:
            owner = owners.setdefault(claim.token, claim.job)
            if owner == claim.job and (claim.token, claim.restart) not in seen:
                seen.add((claim.token, claim.restart))
                valid.append(claim)
    return valid


def is_superseded(mine: Claim, claims: Sequence[Claim]) -> bool:
    """Whether an attempt that runs has to leave: its token was revoked, or Slurm started its job again elsewhere."""
    later = [item for item in claims if item.token == mine.token and item.number > mine.number]
    return any(item.kind == "revoke" for item in later) or any(item in later for item in valid_starts(claims))


def attempt_folder(step_folder: Path, attempt: int) -> Path:
    return step_folder / "attempts" / str(attempt)


def read_history(step_folder: Path) -> History:
    claims = read_claims(step_folder)
    return History(tuple(claims), tuple(_read_attempt(step_folder, claim) for claim in valid_starts(claims)))


def _read_attempt(step_folder: Path, claim: Claim) -> Attempt:
    folder = attempt_folder(step_folder, claim.attempt)
    end, result = read_end(folder), read_file(folder / "result.json")
    # A step that was stopped right after it had written its result has ended well all the same.
    well = end.state == "done" if end and end.state in ("done", "blocked", "refused") else result_is_good(result)
    return Attempt(claim, end, well, result is not None)


def result_is_good(result: dict[str, Any] | None) -> bool:
    """Whether a step's own result.json says that it ended well."""
    return result is not None and result.get("state") in ("published", "adopted")


def read_end(folder: Path) -> End | None:
    document = read_file(folder / "end.json")
    return End(**document) if document is not None else None


def write_end(folder: Path, end: End) -> bool:
    """Record how an attempt ended; False when that has been recorded already, which then stands."""
    return create_once(folder / "end.json", canonical_json(dataclasses.asdict(end)))


def write_heartbeat(folder: Path, beats: int) -> None:
    """Show that an attempt lives. Not synced: what counts is that others see it change."""
    temporary = folder / ".heartbeat.tmp"
    temporary.write_bytes(canonical_json({"beats": beats, "pid": os.getpid(), "time": round(time.time(), 3)}))
    temporary.replace(folder / "heartbeat.json")


def read_beat(folder: Path) -> bytes:
    """Something that changes as long as the attempt lives; empty before its first heartbeat."""
    try:
        return (folder / "heartbeat.json").read_bytes()
    except OSError:
        return b""


def read_file(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None when it is not there (yet)."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def create_once(path: Path, data: bytes) -> bool:
    """Create a file with its content unless it is there; exactly one of many that try gets True."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Some network file systems report the second of two link calls they sent for one: the count tells.
            return temporary.stat().st_nlink == 2
        else:
            return True
        finally:
            temporary.unlink(missing_ok=True)
