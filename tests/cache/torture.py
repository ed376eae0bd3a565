"""Many processes on one cache, some of them killed; prints what went wrong as JSON.

    python torture.py FOLDER SEED [--processes 64] [--operations 500] [--kills 16]

The parent imports no more than the store, forks, kills at random and lets a successor do the rest of a victim's work.
Every process writes what it saw to a log of its own, one write a line, so that nothing said is lost with a process.
Times are of the monotonic clock, which all processes of a host share.

Three kinds of keys: `kept` are pinned, `loose` may be removed by anybody, `tampered` also get bytes changed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trtx.cache.lease import Timing, single_flight
from trtx.cache.manifest import Manifest, load_manifest
from trtx.cache.pins import pin_entry
from trtx.cache.prune import keys_to_keep, list_prunable, measure, prune
from trtx.cache.store import OWNER, Store
from trtx.cache.verify import verify_entries
from trtx.files import sha256_bytes

KINDS = {"kept": 12, "loose": 16, "tampered": 6}
# Leases as slow as in earnest would leave most processes waiting for most of the test.
TIMING = Timing(heartbeat_s=0.05, silence_s=0.5, poll_s=0.01)
# (operation, weight)
MIX = {"get": 62, "publish": 22, "verify": 6, "prune": 3, "remove": 4, "tamper": 3}


def key_of(kind: str, number: int) -> str:
    return sha256_bytes(f"{kind}-{number}".encode())


KEYS = {kind: [key_of(kind, number) for number in range(count)] for kind, count in KINDS.items()}
ALL_KEYS = [key for keys in KEYS.values() for key in keys]


class Worker:
    """One process: does operations and logs what it saw."""

    def __init__(self, store: Store, log: Path, seed: str) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._serial = 0

    def log(self, event: str, **fields: Any) -> None:
        os.write(self._log, json.dumps({"event": event, "at": time.monotonic(), **fields}).encode() + b"\n")

    def work(self, first: int, last: int) -> None:
        names, weights = list(MIX), list(MIX.values())
        for number in range(first, last):
            [name] = self._random.choices(names, weights)
            operation: Callable[[], None] = getattr(self, f"_{name}")
            operation()
            self.log("did", operation=name, number=number)

    def _get(self) -> None:
        key = self._random.choice(ALL_KEYS)
        since = time.monotonic()
        found = self._store.find(key)
        if found.manifest is None:
            self.log("fault" if found.fault else "miss", key=key, since=since, what=found.fault)
            return
        seen = read_whole(self._store, key)
        if seen is None:
            self.log("vanished", key=key)
        else:
            self.log("hit", key=key, nonce=seen[0], wrong=seen[1])

    def _publish(self) -> None:
        """Half of them with leases, half as if those did not work."""
        key = self._random.choice(ALL_KEYS)
        if self._random.random() < 0.5:
            with single_flight(self._store, key, {"key": key}, lambda _text: None, TIMING) as adopted:
                if adopted is None:
                    self._make(key)
        elif self._store.find(key).manifest is None:
            self._make(key)

    def _make(self, key: str) -> None:
        self._serial += 1
        nonce, since = f"{os.getpid()}-{self._serial}", time.monotonic()
        with self._store.stage(key) as folder:
            for name in ("one", "sub/two"):
                path = folder / "output" / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content_of(key, nonce, name))
            draft = Manifest(key, "build/torture", "build", {}, (), {"started": 0.0}, {"nonce": nonce})
            manifest = self._store.publish(folder, draft)
        self.log("published", key=key, nonce=manifest.summary["nonce"], since=since)

    def _verify(self) -> None:
        keys = self._random.sample(ALL_KEYS, 3)
        for checked in verify_entries(self._store, keys, threads=1):
            self.log("verified", key=checked.key, fault=checked.fault)

    def _prune(self) -> None:
        chosen = list_prunable(
            measure(self._store), keys_to_keep(self._store), max_bytes=self._random.choice((0, 100_000))
        )
        keys = [entry.row.key for entry in chosen.doomed]
        self.log("removing", keys=keys)
        prune(self._store, chosen)
        self.log("removed", keys=keys)

    def _remove(self) -> None:
        key = self._random.choice(KEYS["loose"] + KEYS["tampered"])
        self.log("removing", keys=[key])
        self._store.remove(key)
        self.log("removed", keys=[key])

    def _tamper(self) -> None:
        path = self._store.output(self._random.choice(KEYS["tampered"])) / "one"
        with suppress(FileNotFoundError):
            path.chmod(0o644)
            with path.open("r+b") as stream:
                stream.seek(self._random.randrange(16))
                stream.write(b"\xff")  # Not a flip: two of them would put things right again.


def content_of(key: str, nonce: str, name: str) -> bytes:
    return f"{key} {nonce} {name}\n".encode() * 4


def read_whole(store: Store, key: str) -> tuple[str, bool] | None:
    """(nonce, whether anything in it is wrong) of the entry that is there, None when it vanishes meanwhile.

    Read through one descriptor of its folder, so that all of it is of one entry.
    """
    try:
        folder = os.open(store.entry(key), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        manifest = load_manifest(read_at(folder, "manifest.json"))
        parts = {record.path: read_at(folder, f"output/{record.path}") for record in manifest.files}
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    nonce = manifest.summary["nonce"]
    right = {name: content_of(key, nonce, name) for name in ("one", "sub/two")}
    return nonce, manifest.key != key or parts != right


def read_at(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def pretend_to_lock(log: Path) -> None:
    """Every lock is granted to everybody, as on some cluster file systems; and every call is told."""

    def grant(*_arguments: object) -> None:
        with log.open("a") as stream:
            stream.write(json.dumps({"event": "locked", "at": 0.0}) + "\n")

    fcntl.flock = grant  # type: ignore[assignment]
    fcntl.lockf = grant  # type: ignore[assignment]


class Herd:
    """The processes of one run, and the parent that kills some of them."""

    def __init__(self, store: Store, logs: Path, seed: int, operations: int) -> None:
        self._store, self._logs, self._seed, self._operations = store, logs, seed, operations
        self._running: dict[int, tuple[int, Path]] = {}
        self._generation = 0
        self.errors = 0
        self.died: dict[str, float] = {}

    def start(self, member: int, first: int) -> None:
        self._generation += 1
        log = self._logs / f"{member}-{self._generation}.jsonl"
        pid = os.fork()
        if pid:
            self._running[pid] = (member, log)
            return
        worker = Worker(self._store, log, f"{self._seed}-{member}-{self._generation}")
        code = 0
        try:
            worker.work(first, self._operations)
        except BaseException:
            worker.log("error", what=traceback.format_exc())
            code = 1
        os._exit(code)

    def run(self, processes: int, kills: int) -> None:
        chance = random.Random(self._seed)
        for member in range(processes):
            self.start(member, 0)
        next_kill = time.monotonic() + 0.05
        while self._running:
            self._reap()
            if kills and self._running and time.monotonic() >= next_kill:
                kills -= 1
                next_kill = time.monotonic() + chance.uniform(0.01, 0.1)
                os.kill(chance.choice(list(self._running)), signal.SIGKILL)
            time.sleep(0.005)

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            member, log = self._running.pop(pid)
            self.died[log.name] = time.monotonic()
            if os.WIFSIGNALED(status):
                done = [event for event in read_log(log) if event["event"] == "did"]
                first = done[-1]["number"] + 1 if done else 0
                self.start(member, first)
            elif status:
                self.errors += 1


def read_log(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a log; the last may be cut off by a kill."""
    events = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(ValueError):
            events.append(json.loads(line))
    return events


def judge(store: Store, logs: Path, herd: Herd) -> dict[str, Any]:
    """What the logs and the cache that is left say: counts, and lists of everything that must not be."""
    per_log = {path.name: read_log(path) for path in sorted(logs.glob("*.jsonl"))}
    events = [event for found in per_log.values() for event in found]
    of = lambda name: [event for event in events if event["event"] == name]  # noqa: E731
    removals = list(list_removals(per_log, herd.died))
    kept = set(KEYS["kept"])
    problems = {
        "errors": [event["what"] for event in of("error")],
        "locks": of("locked"),
        "wrong": [event for event in of("hit") if event["wrong"] and event["key"] not in KEYS["tampered"]],
        "faults": [event for event in of("fault") + of("verified") if is_unexpected_fault(event)],
        "vanished": [event for event in of("vanished") if event["key"] in kept],
        "duplicates": list(list_duplicates(of("published") + of("hit"), kept)),
        "lost": list(list_lost(of("miss"), of("published"), removals)),
        "left": list(look_at_rest(store, of("published"), removals)),
    }
    counts = {name: sum(event.get("operation") == name for event in of("did")) for name in MIX}
    outcomes = {name: len(of(name)) for name in ("hit", "miss", "fault", "published", "vanished")}
    return {"operations": counts, "outcomes": outcomes, "problems": {k: v[:5] for k, v in problems.items() if v}}


def is_unexpected_fault(event: dict[str, Any]) -> bool:
    fault = event.get("what") or event.get("fault")
    return bool(fault) and event["key"] not in KEYS["tampered"]


def list_removals(
    per_log: dict[str, list[dict[str, Any]]], died: dict[str, float]
) -> Iterator[tuple[str, float, float]]:
    """(key, from, to): while somebody may have been removing it; until its death for one that was killed."""
    for name, events in per_log.items():
        begun: dict[str, Any] | None = None
        for event in events:
            if event["event"] == "removing":
                begun = event
            elif event["event"] == "removed" and begun is not None:
                yield from ((key, begun["at"], event["at"]) for key in begun["keys"])
                begun = None
        if begun is not None:
            yield from ((key, begun["at"], died[name]) for key in begun["keys"])


def list_duplicates(events: list[dict[str, Any]], kept: set[str]) -> Iterator[str]:
    """Keys that were never removed and yet were seen with two contents."""
    seen: dict[str, str] = {}
    for event in events:
        if event["key"] in kept and seen.setdefault(event["key"], event["nonce"]) != event["nonce"]:
            yield event["key"]


def list_lost(
    misses: list[dict[str, Any]], published: list[dict[str, Any]], removals: list[tuple[str, float, float]]
) -> Iterator[dict[str, Any]]:
    """Misses of what had been published, with nobody removing it between the publishing and the miss."""
    for miss in misses:
        key = miss["key"]
        if key in KEYS["tampered"]:
            continue
        before = [event for event in published if event["key"] == key and event["at"] < miss["since"]]
        if before:
            since = max(event["since"] for event in before)
            if not any(name == key and end >= since and start <= miss["at"] for name, start, end in removals):
                yield miss


def look_at_rest(
    store: Store, published: list[dict[str, Any]], removals: list[tuple[str, float, float]]
) -> Iterator[str]:
    """What is wrong with the cache that is left."""
    for folder in (store.root / "quarantine").iterdir():
        key = folder.name.split("-")[0]
        one = folder / "output" / "one"
        nonce = load_manifest((folder / "manifest.json").read_bytes()).summary["nonce"]
        if key not in KEYS["tampered"]:
            yield f"an entry was quarantined that nobody tampered with: {folder.name}"
        elif one.read_bytes() == content_of(key, nonce, "one"):
            yield f"an intact entry was quarantined: {folder.name}"
    for key in KEYS["kept"] + KEYS["loose"]:
        last = max((event["since"] for event in published if event["key"] == key), default=None)
        removed = any(name == key and last is not None and end >= last for name, _, end in removals)
        if last is not None and not removed and store.find(key).manifest is None:
            yield f"{key} was published, not removed, and is not there"
    for checked in verify_entries(store, store.keys()):
        if checked.fault and checked.key not in KEYS["tampered"]:
            yield f"{checked.key}: {checked.fault}"
    strangers = set(store.keys()) - set(ALL_KEYS)
    if strangers:
        yield f"there are keys that nobody published: {strangers}"
    store.clean_staging()
    # One killed before it wrote whose it is stays for an hour, since it might be somebody's who is about to.
    if rest := [path.name for path in (store.root / "tmp").iterdir() if (path / OWNER).exists()]:
        yield f"staging of dead processes is left: {rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--operations", type=int, default=500)
    parser.add_argument("--kills", type=int, default=16)
    asked = parser.parse_args()
    logs = asked.folder / "logs"
    logs.mkdir(parents=True)
    store = Store(asked.folder / "cache")
    store.prepare()
    for key in KEYS["kept"]:
        pin_entry(store, key, "", "")
    pretend_to_lock(logs / "locks.jsonl")
    began = time.monotonic()
    herd = Herd(store, logs, asked.seed, asked.operations)
    herd.run(asked.processes, asked.kills)
    seconds = time.monotonic() - began
    report = {"seed": asked.seed, "seconds": round(seconds, 2), "processes": len(herd.died)}
    print(json.dumps(report | judge(store, logs, herd)))
    sys.exit(0)


if __name__ == "__main__":
    main()
