"""Digests of files that have not changed since they were last read: planning twice reads 16 GB once.

A digest is remembered under the file's size, mtime, ctime and inode. As in git's index, a file touched within the last
two seconds is not remembered: a second write within one clock tick would go unseen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trtx.errors import TrtxError, UsageProblem
from trtx.files import read_json, sha256_bytes, sha256_file, write_json
from trtx.models.sources.transfer import FileDigest
from trtx.paths import cache_dir

SETTLED_NS = 2_000_000_000

Stamp = list[int]


def digest_files(root: Path, names: tuple[str, ...], environ: Mapping[str, str]) -> list[FileDigest]:
    """(relative path, bytes, hex SHA-256) of files below `root`, from the memo where it still holds.

    Raises UsageProblem when a file cannot be read.
    """
    memo_path = cache_dir(environ) / "memo" / f"{sha256_bytes(os.fsencode(root))}.json"
    memo = _load(memo_path)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the GIL
        entries = dict(zip(names, pool.map(lambda name: _entry(root / name, memo.get(name)), names), strict=True))
    settled = {name: entry for name, entry in entries.items() if _is_settled(entry[0])}
    if settled != memo:
        _save(memo_path, settled)
    return [(name, stamp[0], digest) for name, (stamp, digest) in entries.items()]


def _entry(path: Path, known: tuple[Stamp, str] | None) -> tuple[Stamp, str]:
    try:
        stamp = _stamp(path)
        if known is not None and known[0] == stamp:
            return known
        digest = sha256_file(path)
        if _stamp(path) != stamp:
            raise UsageProblem(
                f"{path} is being written", why="it changed while it was read", fix="try again when done"
            )
    except OSError as error:
        raise UsageProblem(f"cannot read {path}", why=error.strerror or str(error)) from error
    return stamp, digest


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _is_settled(stamp: Stamp) -> bool:
    return time.time_ns() - max(stamp[1], stamp[2]) > SETTLED_NS


def _load(path: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        return {name: (stamp, digest) for name, (stamp, digest) in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # absent or damaged: the digests are computed again


def _save(path: Path, memo: dict[str, tuple[Stamp, str]]) -> None:
    try:
        write_json(path, memo)
    except (OSError, TrtxError):
        return  # a read-only or full cache folder makes planning slower, not wrong
