"""The store: where entries live, how they appear, and how they are checked.

Layout of the cache folder:

    CACHEDIR.TAG  layout             what this folder is, and its version
    entries/ab/<key>/manifest.json   one entry; `output/` holds the step's files
    memo/ab/<key>.json               stat of each file when it was last hashed (machine-local, never trusted alone)
    tmp/<name>/                      staging; invisible until renamed into entries/
    quarantine/<key>-<n>/            entries that failed their check, kept for inspection
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trtx.cache.manifest import FileRecord, Manifest, ManifestCorrupt, load_manifest, peek_manifest
from trtx.errors import EnvironmentProblem, StepFailed
from trtx.files import disk_errors, read_json, sha256_file, walk_files, write_json, write_text
from trtx.processes import describe_this_process, is_gone

LAYOUT_VERSION = "1"
OWNER = "owner.json"
# A staging folder without an owner note is from a process killed between two system calls.
UNOWNED_AGE_S = 3600
# https://bford.info/cachedir/: backup tools skip folders with this file.
CACHEDIR_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache made by trtx.\n"


@dataclass(frozen=True)
class Found:
    """What the store knows of a key: `manifest` when the entry is intact, `fault` when there is one but it is corrupt.

    Both None: there is no entry.
    """

    manifest: Manifest | None = None
    fault: str | None = None


class Store:
    """A cache folder. Safe for any number of processes: entries appear only by rename and never change."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Create the folder and its tags, or refuse one of another layout."""
        version = self.root / "layout"
        if version.exists() and version.read_text().strip() != LAYOUT_VERSION:
            raise EnvironmentProblem(
                f"{self.root} is a trtx cache of layout {version.read_text().strip()}",
                why=f"this version of trtx reads layout {LAYOUT_VERSION}",
                fix="point TRTX_CACHE_DIR at another folder, or delete that one",
            )
        with disk_errors(self.root):
            for name in ("entries", "memo", "tmp", "quarantine"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        if not version.exists():
            write_text(self.root / "CACHEDIR.TAG", CACHEDIR_TAG)
            write_text(version, LAYOUT_VERSION + "\n")

    def entry(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def output(self, key: str) -> Path:
        """The folder with the step's files."""
        return self.entry(key) / "output"

    def manifests(self, stage: str | None = None) -> Iterator[Manifest]:
        """The manifests of all entries, or those of one stage, by key; neither they nor their files are checked.

        Entries with an unreadable manifest are skipped.
        """
        for path in sorted(self.root.glob("entries/??/*/manifest.json")):
            try:
                manifest = peek_manifest(path.read_bytes())
            except OSError:  # Pruned meanwhile.
                continue
            if manifest is not None and stage in (None, manifest.stage):
                yield manifest

    def find(self, key: str) -> Found:
        """Look an entry up and check every file; a file whose stat did not change since it was hashed is not read."""
        try:
            manifest = load_manifest((self.entry(key) / "manifest.json").read_bytes())
        except FileNotFoundError:
            return Found(fault="manifest.json is missing") if self.entry(key).exists() else Found()
        except NotADirectoryError:
            return Found()
        except ManifestCorrupt as error:
            return Found(fault=f"manifest.json: {error}")
        if manifest.key != key:
            return Found(fault=f"manifest.json is of the key {manifest.key}")
        fault = self._check_files(manifest)
        return Found(fault=fault) if fault else Found(manifest=manifest)

    def _check_files(self, manifest: Manifest) -> str | None:
        """The first fault among an entry's files, or None."""
        root = self.output(manifest.key)
        memo = self._read_memo(manifest.key)
        fresh: dict[str, list[int]] = {}
        for record in manifest.files:
            path = root / record.path
            try:
                seen = _fingerprint(path)
            except OSError as error:
                return f"{record.path}: {error.strerror}"
            if seen[1] != record.size:
                return f"{record.path} has {seen[1]} bytes, not {record.size}"
            if memo.get(record.path) != seen and sha256_file(path) != record.sha256:
                return f"{record.path} does not have its recorded SHA-256"
            fresh[record.path] = seen
        known = {record.path for record in manifest.files}
        for path in walk_files(root):
            if (relative := path.relative_to(root).as_posix()) not in known:
                return f"{relative} does not belong to the entry"
        if fresh != memo:
            self._write_memo(manifest.key, fresh)
        return None

    def accept_links(self, key: str) -> None:
        """Renew the memo of an entry that was checked and whose files were linked to since.

        A link changes a file's ctime and nothing else; without this the next look would read all of it again.
        """
        memo, root = self._read_memo(key), self.output(key)
        fresh = {path: _fingerprint(root / path) for path in memo if (root / path).exists()}
        if fresh != memo and all(fresh[path][:3] == memo[path][:3] for path in fresh):
            self._write_memo(key, fresh)

    def _memo_path(self, key: str) -> Path:
        return self.root / "memo" / key[:2] / f"{key}.json"

    def _read_memo(self, key: str) -> dict[str, list[int]]:
        try:
            memo: dict[str, list[int]] = json.loads(self._memo_path(key).read_bytes())
        except (OSError, ValueError):
            return {}
        return memo

    def _write_memo(self, key: str, memo: dict[str, list[int]]) -> None:
        # A cache on a read-only mount is still usable: it only hashes again.
        try:
            write_text(self._memo_path(key), json.dumps(memo))
        except (OSError, EnvironmentProblem):
            return

    @contextmanager
    def stage(self, key: str) -> Iterator[Path]:
        """A fresh folder on the cache's own file system with empty `output/` and `work/`; removed at the end."""
        folder = self.root / "tmp" / f"{key[:16]}-{uuid.uuid4().hex[:8]}"
        with disk_errors(folder):
            (folder / "output").mkdir(parents=True)
            (folder / "work").mkdir()
            write_json(folder / OWNER, describe_this_process())
        try:
            yield folder
        finally:
            remove_tree(folder)

    def publish(self, folder: Path, draft: Manifest) -> Manifest:
        """Turn a staged folder into the entry of `draft.key`, whose `files` are filled in here.

        When another process published the key first, that entry is kept and returned. Raises StepFailed when
        the output is empty or holds anything but files and folders.
        """
        records = tuple(_seal(folder / "output"))
        if not records:
            raise StepFailed(f"{draft.step} wrote no files", fix="this is a bug of trtx: please report the log")
        manifest = replace(draft, files=records)
        with disk_errors(folder):
            entry = folder / "entry"
            entry.mkdir()
            (folder / "output").rename(entry / "output")
            write_text(entry / "manifest.json", manifest.dump())
            (entry / "manifest.json").chmod(0o444)
            target = self.entry(draft.key)
            target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                entry.rename(target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            other = self.find(draft.key)
            if other.manifest is not None:
                return other.manifest
            self.quarantine(draft.key)
        _sync_folder(target.parent)
        (target / "output").chmod(0o555)
        target.chmod(0o555)
        root = target / "output"
        self._write_memo(draft.key, {record.path: _fingerprint(root / record.path) for record in records})
        return manifest

    def quarantine(self, key: str) -> Path | None:
        """Move a corrupt entry out of sight; returns where to, or None when another process did it first."""
        source = self.entry(key)
        target = self.root / "quarantine" / f"{key}-{uuid.uuid4().hex[:8]}"
        try:
            source.chmod(0o755)  # Moving a folder to another parent needs write permission on it.
            source.rename(target)
        except FileNotFoundError:
            return None
        self._memo_path(key).unlink(missing_ok=True)
        return target

    def clean_staging(self) -> int:
        """Delete staging folders whose process on this host is gone; returns how many."""
        gone = [folder for folder in sorted((self.root / "tmp").glob("*")) if _is_abandoned(folder)]
        for folder in gone:
            remove_tree(folder)
        return len(gone)


def _is_abandoned(folder: Path) -> bool:
    try:
        return is_gone(read_json(folder / OWNER))
    except (OSError, ValueError, KeyError):
        return folder.exists() and time.time() - folder.stat().st_mtime > UNOWNED_AGE_S


def _fingerprint(path: Path) -> list[int]:
    """Inode, size, mtime and ctime in ns: unchanged means nobody wrote to the file."""
    info = path.stat()
    return [info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _seal(root: Path) -> Iterator[FileRecord]:
    """Hash, flush and write-protect every file of a staged output."""
    for path in walk_files(root):
        relative = path.relative_to(root).as_posix()
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StepFailed(
                f"the step's output holds {relative}, which is not a plain file", fix="this is a bug of trtx: report it"
            )
        with disk_errors(path), path.open("rb") as stream:
            os.fsync(stream.fileno())
        executable = path.stat().st_mode & 0o111
        path.chmod(0o555 if executable else 0o444)
        yield FileRecord(relative, path.stat().st_size, sha256_file(path))
    for folder, _, _ in os.walk(root, topdown=False):
        if Path(folder) != root:
            Path(folder).chmod(0o555)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(root: Path) -> None:
    """Delete a folder, write-protected or not; files that vanish meanwhile are no error."""
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755)
    shutil.rmtree(root, ignore_errors=True)
