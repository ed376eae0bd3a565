"""Reads every file of many entries, on all cores, and compares it with the digest it was published with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from trtx.cache.digests import hash_files
from trtx.cache.inspection import Inspection, inspect
from trtx.cache.memo import settle
from trtx.cache.store import Store, describe_digest
from trtx.errors import EnvironmentProblem

# Told the bytes read so far, and the bytes there are to read.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checked:
    """An entry after all of it was read. `quarantined` is where a corrupt one was moved to, if it could be."""

    key: str
    step: str
    size: int
    fault: str | None = None
    quarantined: Path | None = None


def verify_entries(
    store: Store, keys: Iterable[str], *, progress: Progress | None = None, threads: int | None = None
) -> list[Checked]:
    """Check entries, whatever is remembered of them, and move corrupt ones to the quarantine.

    Entries that are removed meanwhile are left out. Results are in the order of `keys`.
    """
    seen = {key: inspect(store.entry(key), key, {}) for key in keys}
    faults = {key: found.fault for key, found in seen.items() if found.fault}
    owner: dict[Path, tuple[str, str]] = {}
    for key, found in seen.items():
        root = store.output(key)
        owner |= {root / path: (key, path) for path in found.unread}
    settle(stamp for found in seen.values() for stamp in found.stamps.values())
    sizes = [(path, seen[key].unread[relative]) for path, (key, relative) in owner.items()]
    counter = _Counter(progress, sum(size for _, size in sizes))
    digests = {key: _digests(found) for key, found in seen.items()}
    for path, digest in hash_files(sizes, threads=threads, advance=counter.add):
        key, relative = owner[path]
        fault = describe_digest(relative, digest, digests[key])
        if fault:
            faults.setdefault(key, fault)
    return [checked for key, found in seen.items() if (checked := _conclude(store, key, found, faults.get(key)))]


def _digests(found: Inspection) -> dict[str, str]:
    return {record.path: record.sha256 for record in found.manifest.files} if found.manifest else {}


def _conclude(store: Store, key: str, found: Inspection, fault: str | None) -> Checked | None:
    if found.identity is None:
        return None
    step, size = (found.manifest.step, found.manifest.total_bytes) if found.manifest else ("", 0)
    if fault is None:
        store.memo.write(key, found.stamps, is_use=False)
        return Checked(key, step, size)
    if store.identity(key) != found.identity:  # Removed or published anew while it was read.
        return None
    try:
        moved = store.quarantine(key, found.identity)
    except EnvironmentProblem:  # A cache that is only read can be checked, too.
        return Checked(key, step, size, fault)
    if moved is None and (now := store.find(key)).fault is None:  # Likewise, or a read failed only once.
        return Checked(key, step, size) if now.identity == found.identity else None
    return Checked(key, step, size, fault, moved)


class _Counter:
    """Adds up what the threads have read."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)
