"""The store: entries live in a folder (trtx.cache.layout), appear whole, never change, and are checked when read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtx.cache.digests import hash_files
from trtx.cache.inspection import Identity, Inspection, identity_of, inspect, list_files
from trtx.cache.layout import check_layout, prepare_layout, require_tag
from trtx.cache.manifest import FileRecord, Manifest, peek_manifest
from trtx.cache.memo import Memo, settle
from trtx.cache.removal import TRASH, make_movable, move_to_trash, remove_tree
from trtx.cache.runs import forget_dead_runs
from trtx.errors import EnvironmentProblem, StepFailed
from trtx.files import (
    Stamp,
    disk_errors,
    read_file,
    read_json,
    stamp_after_links,
    stamp_of,
    write_json,
    write_text,
)
from trtx.processes import describe_this_process, is_gone

__all__ = ["Found", "Store", "remove_tree"]

OWNER = "owner.json"
# Beside the manifest of an entry that was not made in this cache: trtx.cache.origin.
ORIGIN = "origin.json"
# A staging folder without an owner note is from a process killed between two system calls.
UNOWNED_AGE_S = 3600
# An entry that others remove and publish again this often while it is looked at is taken to be absent.
LOOKS = 5
# Files of this size are not read again because this process linked to them.
TRUSTED_LINK_BYTES = 1 << 20
# Publishing is repeated when another's entry stands in the way and is gone or corrupt when looked at.
PUBLISH_ATTEMPTS = 20


@dataclass(frozen=True)
class Found:
    """What the store knows of a key: `manifest` when the entry is intact, `fault` when there is one but it is corrupt.

    Both None: there is no entry. `identity` is of the folder that was looked at.
    """

    manifest: Manifest | None = None
    fault: str | None = None
    identity: Identity | None = None


class Store:
    """A cache folder. Safe for any number of processes: entries appear only by rename and never change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memo = Memo(root / "memo")

    def prepare(self) -> None:
        """Create the folder and its marks, or refuse one of another layout."""
        prepare_layout(self.root)

    def check_layout(self) -> None:
        """Refuse a cache of another layout; for verbs that only read."""
        check_layout(self.root)

    def entry(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def output(self, key: str) -> Path:
        """The folder with the step's files."""
        return self.entry(key) / "output"

    def identity(self, key: str) -> Identity | None:
        """Tells the entry that is there now from those before and after it; None when there is none."""
        return identity_of(self.entry(key))

    def keys(self) -> list[str]:
        """The keys of all entries, sorted: one system call per shard folder, none per entry."""
        return sorted(key for shard in self.shards() for key in self.shard_keys(shard))

    def shards(self) -> list[str]:
        """Names of the folders of entries: the first two digits of their keys."""
        return sorted(name for name in _names(self.root / "entries") if len(name) == 2)

    def shard_keys(self, shard: str) -> list[str]:
        return [name for name in _names(self.root / "entries" / shard) if is_key(name)]

    def manifests(self, stage: str | None = None) -> Iterator[Manifest]:
        """The manifests of all entries, or those of one stage, by key; neither they nor their files are checked.

        Entries with an unreadable manifest are skipped.
        """
        for key in self.keys():
            manifest = self.peek(key)
            if manifest is not None and stage in (None, manifest.stage):
                yield manifest

    def peek(self, key: str) -> Manifest | None:
        """An entry's manifest without any check; None when there is none that can be read."""
        try:
            return peek_manifest(read_file(f"{self.root}/entries/{key[:2]}/{key}/manifest.json"))
        except OSError:
            return None

    def find(self, key: str) -> Found:
        """Look an entry up and check every file; a file whose stat did not change since it was hashed is not read."""
        suspect: Identity | None = None
        for _ in range(LOOKS):
            seen = inspect(self.entry(key), key, self.memo.read(key))
            if seen.identity is None:
                return Found()
            wrong = None if seen.fault else read_files(self.entry(key), seen)
            if seen.fault is None and wrong is None:
                if seen.unread:
                    self.memo.write(key, seen.stamps)
                self.memo.note_use(key)
                return Found(seen.manifest, None, seen.identity)
            if identity_of(self.entry(key)) != seen.identity:
                continue  # Removed, or replaced by another publisher, while it was looked at: that is no fault.
            if wrong is not None or suspect == seen.identity:
                return Found(None, wrong or seen.fault, seen.identity)
            # A file may be absent because somebody moved the entry and put it back: look again.
            suspect = seen.identity
        return Found()

    def accept_links(self, key: str) -> None:
        """Renew the memo of an entry that was checked and whose files this process linked to since.

        A link moves a file's ctime, and without this the next look would read all of it again. A large file is taken
        for unchanged when this process's links, and nothing else, made it what it is now; all other changed files are
        read here. When one is not what it was, the memo stays, and the next look finds the fault.
        """
        memo = self.memo.read(key)
        try:
            device = self.entry(key).stat().st_dev
            known = memo | {path: after for path, stamp in memo.items() if (after := _after_links(device, stamp))}
            seen = inspect(self.entry(key), key, known)
            if not memo or seen.manifest is None or seen.stamps == memo:
                return
            settle(seen.stamps.values())
            if read_files(self.entry(key), seen) is None:
                self.memo.write(key, seen.stamps)
        except OSError:  # Removed meanwhile.
            return

    @contextmanager
    def stage(self, key: str, uses: Sequence[str] = ()) -> Iterator[Path]:
        """A fresh folder on the cache's own file system with empty `output/` and `work/`; removed at the end.

        Its note says whose it is, and that the entries `uses` are in use until then.
        """
        folder = self.root / "tmp" / f"{key[:16]}-{uuid.uuid4().hex[:8]}"
        note: dict[str, Any] = {**describe_this_process(), "key": key, "uses": list(uses)}
        with disk_errors(folder):
            (folder / "output").mkdir(parents=True)
            (folder / "work").mkdir()
            write_json(folder / OWNER, note)
        try:
            yield folder
        finally:
            remove_tree(folder)

    def publish(
        self,
        folder: Path,
        draft: Manifest,
        check: Callable[[tuple[FileRecord, ...]], None] = lambda files: None,
        *,
        origin: str | None = None,
    ) -> Manifest:
        """Turn a staged folder into the entry of `draft.key`, whose `files` are filled in here.

        When another process published the key first, that entry is kept and returned. `check` sees the files before
        anybody else does and raises to refuse them. `origin` is the text of the entry's origin.json. Raises StepFailed
        when the output is empty or holds anything but files and folders.
        """
        records, stamps = _seal(folder / "output")
        if not records:
            raise StepFailed(f"{draft.step} wrote no files", fix="this is a bug of trtx: please report the log")
        check(records)
        manifest = replace(draft, files=records)
        entry, target = folder / "entry", self.entry(draft.key)
        with disk_errors(folder):
            entry.mkdir()
            (folder / "output").rename(entry / "output")
            (entry / "output").chmod(0o555)
            write_text(entry / "manifest.json", manifest.dump())
            (entry / "manifest.json").chmod(0o444)
            if origin is not None:
                write_text(entry / ORIGIN, origin)
                (entry / ORIGIN).chmod(0o444)
            _sync_folder(entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            other = self._move_in(entry, target, draft.key)
        if other is not None:
            return other
        self.memo.write(draft.key, stamps)
        return manifest

    def _move_in(self, entry: Path, target: Path, key: str) -> Manifest | None:
        """Rename a finished entry into its place; returns the manifest of an intact one that is there already."""
        descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(PUBLISH_ATTEMPTS):
                try:
                    entry.rename(target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                else:
                    os.fchmod(descriptor, 0o555)  # By descriptor: the name may already be another's entry.
                    _sync_folder(target.parent)
                    return None
                other = self.find(key)
                if other.manifest is not None:
                    return other.manifest
                if other.fault is not None:
                    self.quarantine(key, other.identity)
        finally:
            os.close(descriptor)
        raise EnvironmentProblem(
            f"cannot publish the entry {key}",
            why="whenever it is moved into its place, another one stands there and is gone when looked at",
            fix="look for a program that tampers with the cache folder, then run again",
        )

    def quarantine(self, key: str, identity: Identity | None = None) -> Path | None:
        """Move a corrupt entry out of sight; returns where to, or None when none is there any more.

        `identity` (of Found) says which one was found corrupt, else it is looked at here. Between looking and moving
        somebody else may put a good one in its place: what was moved is checked where nobody else touches it, and put
        back when it is good. Raises EnvironmentProblem when it cannot be moved.
        """
        if identity is None:
            found = self.find(key)
            if found.fault is None:
                return None
            identity = found.identity
        source, suspect = self.entry(key), self.root / "tmp" / f"suspect-{uuid.uuid4().hex}"
        try:
            if identity_of(source) != identity:
                return None
            with disk_errors(source):
                make_movable(source)
                source.rename(suspect)
        except FileNotFoundError:
            return None
        if identity_of(suspect) != identity or self._is_intact(suspect, key):
            self._put_back(suspect, source)
            return None
        self.memo.forget(key)
        target = self.root / "quarantine" / f"{key}-{uuid.uuid4().hex[:8]}"
        suspect.rename(target)
        return target

    def _is_intact(self, folder: Path, key: str) -> bool:
        seen = inspect(folder, key, {})
        return seen.fault is None and read_files(folder, seen) is None

    def _put_back(self, moved: Path, place: Path) -> None:
        """Return a good entry that was moved by mistake, unless the key was published once more meanwhile."""
        try:
            moved.rename(place)
            place.chmod(0o555)
        except OSError:
            remove_tree(moved)

    def remove(self, key: str) -> bool:
        """Delete an entry: at once for readers, then its files. False when there was none.

        Raises EnvironmentProblem when this folder is not marked as a cache that may be deleted from.
        """
        require_tag(self.root, self.entry(key).parent)
        with disk_errors(self.entry(key)):
            trash = move_to_trash(self.root, self.entry(key))
        if trash is None:
            return False
        self.memo.forget(key)
        remove_tree(trash)
        return True

    def clean_staging(self) -> int:
        """Delete trash, staging folders whose process on this host is gone, and notes of dead runs.

        Returns how many folders.
        Nothing where nothing may be deleted: what is called `tmp` there may be anybody's.
        """
        try:
            require_tag(self.root)
        except EnvironmentProblem:
            return 0
        gone = [folder for folder in sorted((self.root / "tmp").glob("*")) if _is_abandoned(folder)]
        for folder in gone:
            remove_tree(folder)
        forget_dead_runs(self.root)
        return len(gone)


def _after_links(device: int, stamp: Stamp) -> Stamp | None:
    """What this process's links made of a file's stamp; None for small ones, which are as soon read."""
    is_stamp = len(stamp) == 4 and all(isinstance(number, int) for number in stamp)  # The memo may be damaged.
    return stamp_after_links(device, stamp) if is_stamp and stamp[1] >= TRUSTED_LINK_BYTES else None


def _names(folder: Path) -> list[str]:
    """Names in a folder, which may not be there."""
    try:
        with os.scandir(folder) as members:
            return [member.name for member in members]
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_key(text: str) -> bool:
    """Whether a text is a full SHA-256 in lower-case hexadecimal."""
    return len(text) == 64 and not text.strip("0123456789abcdef")


def read_files(entry: Path, seen: Inspection) -> str | None:
    """Hash the files of an entry that are not known to be unchanged; returns the first fault among them."""
    if not seen.unread or seen.manifest is None:
        return None
    settle(seen.stamps[path] for path in seen.unread)
    root, digests = entry / "output", {record.path: record.sha256 for record in seen.manifest.files}
    for path, digest in hash_files((root / path, size) for path, size in seen.unread.items()):
        fault = describe_digest(path.relative_to(root).as_posix(), digest, digests)
        if fault:
            return fault
    return None


def describe_digest(path: str, digest: str | OSError, expected: dict[str, str]) -> str | None:
    """The fault of a file whose content was hashed, if it has one."""
    if isinstance(digest, OSError):
        return f"{path}: {digest.strerror}"
    return None if digest == expected[path] else f"{path} does not have its recorded SHA-256"


def _is_abandoned(folder: Path) -> bool:
    if folder.name.startswith(TRASH):
        return True
    try:
        return is_gone(read_json(folder / OWNER))
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(FileNotFoundError):
            # Not mtime: a suspect entry that is looked at here keeps the one it was published with.
            return time.time() - folder.stat().st_ctime > UNOWNED_AGE_S
        return False


def _seal(root: Path) -> tuple[tuple[FileRecord, ...], dict[str, Stamp]]:
    """Flush and write-protect every file of a staged output, then hash it; records are sorted by path."""
    found = sorted(list_files(root))
    for relative, info in found:
        path = root / relative
        if not stat.S_ISREG(info.st_mode):
            raise StepFailed(
                f"the step's output holds {relative}, which is not a plain file", fix="this is a bug of trtx: report it"
            )
        with disk_errors(path), path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.chmod(0o555 if info.st_mode & 0o111 else 0o444)
    for folder, _, _ in os.walk(root, topdown=False):
        _sync_folder(Path(folder))
        if Path(folder) != root:
            Path(folder).chmod(0o555)
    stamps = {relative: stamp_of((root / relative).stat()) for relative, _ in found}
    settle(stamps.values())
    digests = dict(hash_files((root / relative, stamps[relative][1]) for relative, _ in found))
    records = []
    for relative, stamp in stamps.items():
        digest = digests[root / relative]
        if isinstance(digest, OSError):
            raise digest
        records.append(FileRecord(relative, stamp[1], digest))
    return tuple(records), stamps


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
