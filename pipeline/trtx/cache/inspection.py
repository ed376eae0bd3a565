"""Looks at one entry: its manifest, which files are there, and which of them must be read to be sure."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtx.cache.manifest import Manifest, ManifestCorrupt, load_manifest
from trtx.files import Stamp, read_file, stamp_of

Identity = tuple[int, int]


@dataclass(frozen=True)
class Inspection:
    """What is known of an entry before any of its files was read.

    `identity` tells this entry from another one published later under the same key; None means there is none.
    `unread` are the files whose content has to be hashed, as path → size in bytes; `stamps` those of all files.
    """

    identity: Identity | None
    manifest: Manifest | None = None
    fault: str | None = None
    stamps: dict[str, Stamp] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)


def identity_of(entry: Path) -> Identity | None:
    """Tells what is in an entry's place from everything that was ever there; links are not followed."""
    try:
        info = entry.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (info.st_ino, info.st_mtime_ns)


def inspect(entry: Path, key: str, memo: Mapping[str, Stamp]) -> Inspection:
    """Look at an entry without reading its files; those that `memo` knows unchanged need not be read."""
    identity = identity_of(entry)
    if identity is None:
        return Inspection(None)
    try:
        manifest = load_manifest(read_file(entry / "manifest.json"))
        found = dict(list_files(entry / "output"))
    except ManifestCorrupt as error:
        return Inspection(identity, fault=f"manifest.json: {error}")
    except OSError as error:
        return Inspection(identity, fault=_describe_unreadable(error))
    fault = f"manifest.json is of the key {manifest.key}" if manifest.key != key else _compare(manifest, found)
    if fault:
        return Inspection(identity, fault=fault)
    stamps = {path: stamp_of(info) for path, info in found.items()}
    unread = {path: stamp[1] for path, stamp in stamps.items() if memo.get(path) != stamp}
    return Inspection(identity, manifest, None, stamps, unread)


def _describe_unreadable(error: OSError) -> str:
    name = Path(os.fsdecode(error.filename)).name if error.filename else "output"
    return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"


def _compare(manifest: Manifest, found: Mapping[str, os.stat_result]) -> str | None:
    """The first difference between the files a manifest names and those that are there, by name, kind and size."""
    for record in manifest.files:
        info = found.get(record.path)
        if info is None:
            return f"{record.path} is missing"
        if not stat.S_ISREG(info.st_mode):
            return f"{record.path} is not a plain file"
        if info.st_size != record.size:
            return f"{record.path} has {info.st_size} bytes, not {record.size}"
    foreign = sorted(found.keys() - {record.path for record in manifest.files})
    return f"{foreign[0]} does not belong to the entry" if foreign else None


def list_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path relative to `root`, its own stat) of everything below a folder that is no folder; links are not followed.

    One system call per folder and one per file. Raises OSError when `root` cannot be read.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(f"{root}/{prefix}") as members:
            for member in members:
                if member.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{member.name}/")
                else:
                    yield f"{prefix}{member.name}", member.stat(follow_symlinks=False)
