"""Built kernel libraries, kept for the builds of other engines. Imports no torch.

Each has its namespace and its digest in its name, and the time of its last use as the time of its file. What was not
used for long, or is too much, goes whenever something is added: a library is derived, and built again in less than a
minute. A build that is just copying one keeps its open file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trtx.files import sha256_file

# A library has half a megabyte; one is current for each target, torch and compiler.
MAX_BYTES = 64 << 20
UNUSED_S = 60 * 86400.0
# A copy that was not finished after so long was given up.
STAGED_S = 3600.0
STAGED = "staged-"


def take(shelf: Path, namespace: str, library: Path) -> bool:
    """Copy a library of a namespace from the shelf; False when it has none that is intact."""
    for found in sorted(shelf.glob(f"{namespace}-*.so")):
        with contextlib.suppress(OSError):  # removed meanwhile, or of a user who keeps it to themselves
            shutil.copyfile(found, library)
            if found.stem == f"{namespace}-{sha256_file(library)}":
                with contextlib.suppress(OSError):  # another user's
                    os.utime(found)
                return True
    return False


def put(shelf: Path, namespace: str, library: Path) -> None:
    """Add a library, and let go what is too old or too much. Raises OSError when the shelf cannot be written."""
    shelf.mkdir(parents=True, exist_ok=True)
    target = shelf / f"{namespace}-{sha256_file(library)}.so"
    handle, name = tempfile.mkstemp(dir=shelf, prefix=STAGED)
    os.close(handle)
    staged = Path(name)
    try:
        shutil.copyfile(library, staged)
        staged.chmod(0o644)  # a cache may be shared
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    trim(shelf, keep=target)


def trim(shelf: Path, keep: Path | None = None, *, max_bytes: int = MAX_BYTES, now: float | None = None) -> None:
    """Delete what was not used for UNUSED_S, then the longest unused until `max_bytes` are left, but never `keep`."""
    moment = time.time() if now is None else now
    left = 0
    for used, size, path in sorted(_list(shelf), reverse=True):
        left += size
        staged = path.name.startswith(STAGED)
        gone = moment - used > (STAGED_S if staged else UNUSED_S) or (not staged and left > max_bytes)
        if gone and path != keep:
            left -= size
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def shelf_bytes(shelf: Path) -> int:
    """Bytes of all libraries; 0 where there is no shelf."""
    return sum(size for _, size, _ in _list(shelf))


@contextlib.contextmanager
def alone(shelf: Path, what: str) -> Iterator[None]:
    """Wait until no other process of this machine is within `alone` for the same thing.

    A shelf that cannot be written, or whose file system has no locks, makes nobody wait: that costs time alone.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            shelf.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((shelf / f"{what}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _list(shelf: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, bytes and path of what `put` has left; whatever else is there is not ours."""
    for pattern in ("trtx_*-*.so", f"{STAGED}*"):
        for path in shelf.glob(pattern):
            with contextlib.suppress(OSError):
                info = path.stat()
                yield info.st_mtime, info.st_size, path
