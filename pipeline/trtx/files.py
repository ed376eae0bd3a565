"""Files written whole or not at all, canonical JSON, and digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtx.errors import EnvironmentProblem

Stamp = list[int]

CHUNK_BYTES = 1 << 20
# ioctl_ficlone(2): _IOW(0x94, 9, int), in linux/fs.h. Btrfs, XFS, bcachefs, OverlayFS over these, NFS since 4.2.
FICLONE = 0x40049409
# EXDEV: another file system. EPERM: a file system or a policy without hard links. EMLINK: too many links already.
NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN (RFC 8785 in spirit)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with disk_errors(path):
        _make_parent(path)
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a part of that path is a file", str(path)) from error


def read_file(path: Path | str) -> bytes:
    """The content of a small file in four system calls; `open` makes eight. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        content = os.read(descriptor, size + 1)
        if len(content) != size:  # It is being written, or a network file system cut the read short.
            while more := os.read(descriptor, CHUNK_BYTES):
                content += more
        return content
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises OSError, and ValueError for everything that is no JSON."""
    return parse_json(path.read_bytes())


def parse_json(text: bytes | str) -> Any:
    """Like json.loads, but what is nested without end is a ValueError, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def walk_files(root: Path) -> Iterator[Path]:
    """Regular files below a folder, sorted by relative path; links are not followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            yield Path(folder, name)


def link_or_copy(source: Path, target: Path) -> str:
    """Make `target` the same bytes as the read-only file `source`, in constant time where the file system can.

    A hard link ("link"), else a copy that shares its blocks with the source ("reflink"), else a copy ("copy"); returns
    which. Raises FileExistsError when `target` is there.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        before = source.lstat()
        try:
            os.link(source, target)
            _note_link(before, source.lstat())
            return "link"
        except OSError as error:
            if error.errno not in NO_HARD_LINK:
                raise
        with source.open("rb") as reader, target.open("xb") as writer:
            try:
                if _reflink(reader.fileno(), writer.fileno()):
                    return "reflink"
                shutil.copyfileobj(reader, writer, CHUNK_BYTES)
                writer.flush()
                return "copy"
            except BaseException:
                target.unlink()
                raise


# What this process's own hard links did to files: inode → stamp before the first link and after the last one.
_links: dict[tuple[int, int], tuple[Stamp, Stamp]] = {}


def stamp_of(info: os.stat_result) -> Stamp:
    """Inode, size in bytes, mtime and ctime in ns: unchanged means nobody wrote to the file."""
    return [info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def stamp_after_links(device: int, stamp: Stamp) -> Stamp | None:
    """The stamp that a file of that stamp got from `link_or_copy` in this process, and from nothing else; or None."""
    first, last = _links.get((device, stamp[0]), (None, None))
    return last if first == stamp else None


def _note_link(before: os.stat_result, after: os.stat_result) -> None:
    """Note a link, unless more happened to the file meanwhile; what happened between two links breaks the chain."""
    inode, old, new = (after.st_dev, after.st_ino), stamp_of(before), stamp_of(after)
    if after.st_nlink != before.st_nlink + 1 or old[:3] != new[:3]:
        _links.pop(inode, None)
        return
    first, last = _links.get(inode, (old, old))
    _links[inode] = (first if last == old else old, new)


def _reflink(source: int, target: int) -> bool:
    """Have a file share another's blocks, as descriptors; False where that cannot be done, for whatever reason."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the file system that holds `path` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an EnvironmentProblem that names the path."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("the disk is full", "free some space or point TRTX_CACHE_DIR at a larger disk"),
            errno.EDQUOT: ("your quota is used up", "free some space or point TRTX_CACHE_DIR elsewhere"),
            errno.EROFS: ("the file system is read-only", "choose a writable folder"),
            errno.EACCES: ("permission denied", "choose a folder you may write to"),
            errno.EPERM: ("it belongs to another user", "ask its owner, or choose a folder of your own"),
            errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
            errno.EISDIR: ("a folder has that name", "choose another name"),
            errno.ENOTDIR: ("a part of that path is a file", "choose another folder"),
        }
        if error.errno not in reasons:
            raise
        why, fix = reasons[error.errno]
        raise EnvironmentProblem(f"cannot write {path}", why=why, fix=fix) from error
