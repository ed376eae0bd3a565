"""Who is making an entry right now, so that others wait for it instead of making it too.

A lease is advice. Nothing is wrong when it fails, in whole or in part: two processes then make the same entry, the
first rename publishes it, and the other adopts it. No lock of the file system is used, since cluster file systems may
grant locks to everybody (Lustre without -o flock) or to nobody.

- A lease is the file leases/<key>.json, made with O_EXCL: one of many creators gets it, on NFS too since version 3.
- Its holder sets the file's mtime every HEARTBEAT_S, through the descriptor it created it with: a holder that lost its
  lease can never refresh somebody else's.
- Who waits watches the file with its own monotonic clock. Only whether it changes counts, never what time it says, so
  clocks of different hosts may disagree by any amount.
- After SILENCE_S without a change, or at once when the holder was a process of this host that is gone, a waiter moves
  the lease aside and looks at what it moved: when that is no longer what it judged, it is put back. Then all race to
  create it anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.files import parse_json
from trtx.processes import describe_this_process, is_gone

HEARTBEAT_S = 5.0
# Twelve missed heartbeats: a compiler may hold the interpreter lock, and a file system may hang, for many seconds.
SILENCE_S = 60.0
POLL_S = 0.5


@dataclass(frozen=True)
class Timing:
    """How often a holder shows that it lives, how long it may be silent, how often a waiter looks; in seconds."""

    heartbeat_s: float = HEARTBEAT_S
    silence_s: float = SILENCE_S
    poll_s: float = POLL_S


@dataclass(frozen=True)
class Holder:
    """A lease as a waiter sees it. `beat` changes with every heartbeat; `note` is empty while it is being written."""

    inode: int
    beat: tuple[int, int]
    note: Mapping[str, Any]

    def describe(self) -> str:
        if "pid" not in self.note:
            return "another process"
        return f"process {self.note['pid']} on {self.note['host']}"

    def is_gone(self) -> bool:
        try:
            return is_gone(dict(self.note))
        except (KeyError, TypeError, ValueError):  # Not what this trtx writes.
            return False


class Lease:
    """A lease that this process holds, kept alive by a thread until it is released."""

    def __init__(self, path: Path, descriptor: int, heartbeat_s: float) -> None:
        self.path = path
        self._descriptor = descriptor
        self._heartbeat_s = heartbeat_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                os.utime(self._descriptor)
            except OSError:  # Taken over, or the file system is gone: others may make the entry too.
                return

    def release(self) -> None:
        """Delete the lease if it is still this one; never raises."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == os.fstat(self._descriptor).st_ino:
                self.path.unlink()
        os.close(self._descriptor)


def lease_path(root: Path, key: str) -> Path:
    return root / "leases" / f"{key}.json"


def take_lease(path: Path, note: Mapping[str, Any], heartbeat_s: float = HEARTBEAT_S) -> Lease | None:
    """Create a lease; None when there is one. Raises OSError when leases do not work here."""
    text = json.dumps({**describe_this_process(), **note, "since": time.time()}).encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        os.write(descriptor, text)
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return Lease(path, descriptor, heartbeat_s)


def read_lease(path: Path) -> Holder | None:
    """The lease of a key, or None when there is none. Raises OSError when it cannot be read."""
    try:
        with path.open("rb") as stream:  # Opening asks an NFS server for the file's present times.
            info, text = os.fstat(stream.fileno()), stream.read()
    except FileNotFoundError:
        return None
    try:
        note = parse_json(text)
    except ValueError:
        note = {}
    return Holder(info.st_ino, (info.st_mtime_ns, info.st_ctime_ns), note if isinstance(note, dict) else {})


def evict(path: Path, judged: Holder) -> None:
    """Take a lease away from a holder that was judged silent or dead, unless it changed since.

    Raises OSError when leases cannot be renamed here.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    moved = read_lease(aside)
    # A rename moves ctime, so only the mtime tells whether the holder has shown itself meanwhile.
    if moved is not None and (moved.inode, moved.beat[0]) != (judged.inode, judged.beat[0]):
        with contextlib.suppress(OSError):  # Somebody was quicker: then two make the entry, and one publishes it.
            os.link(aside, path)
    aside.unlink(missing_ok=True)


class _Watch:
    """How long a lease has not changed, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: tuple[int, tuple[int, int]] | None = None
        self._since = 0.0

    def silent_for(self, holder: Holder) -> float:
        now, seen = time.monotonic(), (holder.inode, holder.beat)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since


@contextmanager
def single_flight(
    store: Store, key: str, note: Mapping[str, Any], say: Callable[[str], None], timing: Timing | None = None
) -> Iterator[Manifest | None]:
    """Wait until the entry of a key exists or it is this process's turn to make it.

    Yields the manifest of an intact entry, or None when it has to be made; then the lease is held, or leases do not
    work here. `note` says what this process does; `say` gets a line for each process that is waited for.
    """
    manifest, lease = _wait(store, key, note, say, timing or Timing())
    try:
        yield manifest
    finally:
        if lease is not None:
            lease.release()


def _wait(
    store: Store, key: str, note: Mapping[str, Any], say: Callable[[str], None], timing: Timing
) -> tuple[Manifest | None, Lease | None]:
    path, entry, watch, told = lease_path(store.root, key), _Entry(store, key), _Watch(), ""
    while True:
        if (manifest := entry.look()) is not None:
            return manifest, None
        try:
            lease = take_lease(path, note, timing.heartbeat_s)
            if lease is not None:
                return _look_once_more(entry, lease)
            holder = read_lease(path)
            if holder is None:
                continue
            silent_s, gone = watch.silent_for(holder), holder.is_gone()
            if gone or silent_s >= timing.silence_s:
                why = "is gone" if gone else f"has been silent for {silent_s:.0f} s"
                say(f"{holder.describe()} was making this and {why}: taking over")
                evict(path, holder)
                continue
        except OSError as error:
            say(f"leases do not work in {path.parent} ({error.strerror}): going on without")
            return None, None
        if told != holder.describe():
            told = holder.describe()
            say(f"waiting for {told}, which is making this already")
        time.sleep(timing.poll_s)


def _look_once_more(entry: _Entry, lease: Lease) -> tuple[Manifest | None, Lease | None]:
    """The holder before this one may have published between the last look and taking the lease."""
    try:
        manifest = entry.look()
    except BaseException:
        lease.release()
        raise
    if manifest is None:
        return None, lease
    lease.release()
    return manifest, None


class _Entry:
    """An entry that is looked at again and again; a corrupt one is read only once."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._corrupt: object = None

    def look(self) -> Manifest | None:
        if self._corrupt is not None and self._store.identity(self._key) == self._corrupt:
            return None
        found = self._store.find(self._key)
        self._corrupt = found.identity if found.fault else None
        return found.manifest
