"""Which entries to delete, and deleting them: one function makes the list, for a dry run and for the run.

What is kept whatever its age: entries that a pin or a lock file names, and those that running jobs use or make. An
entry needs none of its inputs once it is made, so the inputs of a kept entry are not kept for its sake.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtx.cache.index import Row, list_rows
from trtx.cache.inspection import list_files
from trtx.cache.layout import require_tag
from trtx.cache.pins import is_pinned, list_pins
from trtx.cache.store import Store
from trtx.cache.usage import keys_in_use
from trtx.errors import EnvironmentProblem

# Any full digest in a lock file is taken for a key: keeping too much is harmless.
KEY_IN_TEXT = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

Inode = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """An entry with its last use (seconds since the epoch) and the files it holds, as inode → bytes on disk."""

    row: Row
    used: float
    inodes: Mapping[Inode, int]


@dataclass(frozen=True)
class Doomed:
    """An entry to delete, why, and the bytes that this frees given those deleted before it."""

    row: Row
    used: float
    reason: str
    freed: int


@dataclass(frozen=True)
class PruneList:
    """What pruning deletes, in order, and what it would delete but for `kept` (key → reason). Bytes as on disk.

    `failed` (key → reason) could not be deleted though they should have been.
    """

    doomed: tuple[Doomed, ...]
    kept: Mapping[str, str]
    total_bytes: int
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def freed_bytes(self) -> int:
        return sum(entry.freed for entry in self.doomed)


def read_lock_keys(path: Path) -> set[str]:
    """Every key that a lock file names. Raises OSError when it cannot be read."""
    return set(KEY_IN_TEXT.findall(path.read_text(errors="replace")))


def keys_to_keep(store: Store, locks: Iterable[Path] = ()) -> dict[str, str]:
    """Key → why it is kept. Raises EnvironmentProblem for a lock file that cannot be read."""
    kept: dict[str, str] = {}
    for path in locks:
        try:
            kept |= dict.fromkeys(read_lock_keys(path), f"named by {path}")
        except OSError as error:
            raise EnvironmentProblem(
                f"nothing is deleted in {store.root}",
                why=f"what is named by {path} is to be kept, but {path.name}: {error.strerror}",
                fix="make that lock readable, or move it away",
            ) from error
    kept |= {pin.key: f"pinned{f': {pin.note}' if pin.note else ''}" for pin in list_pins(store)}
    return kept | keys_in_use(store)


def measure(store: Store, rows: Iterable[Row] | None = None) -> list[Candidate]:
    """All entries with what they take on disk, the one unused for longest first."""
    found = [_measure_one(store, row) for row in (list_rows(store) if rows is None else rows)]
    return sorted((entry for entry in found if entry), key=lambda entry: (entry.used, entry.row.key))


def _measure_one(store: Store, row: Row) -> Candidate | None:
    folder = store.entry(row.key)
    try:
        inodes = {(info.st_dev, info.st_ino): disk_bytes(info) for _, info in list_files(folder)}
    except OSError:  # Removed meanwhile.
        return None
    return Candidate(row, store.memo.last_use(row.key) or row.made, inodes)


def disk_bytes(info: os.stat_result) -> int:
    """Bytes that a file takes on disk; st_blocks counts units of 512 bytes whatever the file system's blocks are."""
    return info.st_blocks * 512


def unique_bytes(entries: Iterable[Candidate]) -> int:
    """Bytes on disk of entries, files that several of them share counted once."""
    inodes: dict[Inode, int] = {}
    for entry in entries:
        inodes |= entry.inodes
    return sum(inodes.values())


def list_prunable(
    entries: Iterable[Candidate],
    keep: Mapping[str, str],
    *,
    max_bytes: int | None = None,
    unused_s: float | None = None,
    now: float | None = None,
) -> PruneList:
    """Choose what to delete: everything unused for longer than `unused_s`, then the longest unused until the rest
    takes at most `max_bytes` on disk. `entries` come from `measure`, longest unused first.
    """
    moment, present = time.time() if now is None else now, list(entries)
    holders: dict[Inode, int] = {}
    for entry in present:
        for inode in entry.inodes:
            holders[inode] = holders.get(inode, 0) + 1
    total = left = unique_bytes(present)
    doomed, kept = [], {}
    for entry in present:
        old = unused_s is not None and moment - entry.used > unused_s
        if not old and (max_bytes is None or left <= max_bytes):
            continue
        if entry.row.key in keep:
            kept[entry.row.key] = keep[entry.row.key]
            continue
        freed = _release(entry, holders)
        left -= freed
        doomed.append(Doomed(entry.row, entry.used, "unused for too long" if old else "over the size", freed))
    return PruneList(tuple(doomed), kept, total)


def _release(entry: Candidate, holders: dict[Inode, int]) -> int:
    """Take an entry's files off the count of their holders; returns the bytes that nobody holds any more."""
    freed = 0
    for inode, size in entry.inodes.items():
        holders[inode] -= 1
        freed += size if not holders[inode] else 0
    return freed


def require_deletable(store: Store, chosen: PruneList) -> None:
    """Raise EnvironmentProblem unless everything that was chosen may be deleted: see trtx.cache.layout.require_tag."""
    require_tag(store.root, *{store.entry(entry.row.key).parent for entry in chosen.doomed})


def prune(store: Store, chosen: PruneList, locks: Iterable[Path] = ()) -> PruneList:
    """Delete what was chosen, except what came into use, was pinned or used again since; returns what was deleted.

    An entry that cannot be deleted, such as another user's, is told in `failed`, and the others go.
    Raises EnvironmentProblem, before anything is deleted, when the folder is not marked as a cache.
    """
    require_deletable(store, chosen)
    keep = keys_to_keep(store, locks)
    deleted, kept, failed = [], dict(chosen.kept), {}
    for entry in chosen.doomed:
        key = entry.row.key
        keep |= keys_in_use(store)  # Deleting takes a while, and jobs begin meanwhile.
        if key in keep or is_pinned(store, key):
            kept[key] = keep.get(key, "pinned")
        elif (store.memo.last_use(key) or entry.used) > entry.used:
            kept[key] = "used since the list was made"
        else:
            try:
                deleted += [entry] if store.remove(key) else []
            except EnvironmentProblem as error:
                failed[key] = f"{error.what}: {error.why}"
            except OSError as error:
                failed[key] = f"cannot move {store.entry(key)}: {error.strerror}"
    store.clean_staging()
    return PruneList(tuple(deleted), kept, chosen.total_bytes, failed)
