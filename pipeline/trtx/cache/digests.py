"""SHA-256 of many files at once, with flat memory.

hashlib lets go of the interpreter lock while it hashes, so threads use all cores; one file is hashed by one thread,
since SHA-256 has no parallel form. Files are read in pieces that stay in a core's cache, which is faster than mapping
them into memory (measured: 1.9 against 1.75 GB/s with SHA instructions and a warm page cache).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future

PIECE_BYTES = 1 << 18
# Below this a thread costs more than it gains.
PARALLEL_FROM_BYTES = 32 << 20
# Results that wait to be looked at, per thread: enough to keep the threads busy, few enough to stay small.
QUEUED_PER_THREAD = 64


def num_threads() -> int:
    """Cores this process may use; more threads than cores hash no faster."""
    return max(1, len(os.sched_getaffinity(0)))


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of a file; `advance` is told the bytes of each piece."""
    digest, piece = hashlib.sha256(), bytearray(PIECE_BYTES)
    view = memoryview(piece)
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := stream.readinto(piece):
            digest.update(view[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()


def hash_files(
    files: Iterable[tuple[Path, int]], *, threads: int | None = None, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[Path, str | OSError]]:
    """(path, digest or the error of reading it) for every (path, size in bytes), the largest first.

    A large file that came last would keep one core busy alone.
    """
    ordered = sorted(files, key=lambda item: -item[1])
    workers = min(threads or num_threads(), len(ordered))
    if workers < 2 or sum(size for _, size in ordered) < PARALLEL_FROM_BYTES:
        yield from ((path, _hash_or_error(path, advance)) for path, _ in ordered)
        return
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    waiting = iter(ordered)
    with ThreadPoolExecutor(workers) as pool:
        running: dict[Future[str | OSError], Path] = {}
        while True:
            for path, _ in waiting:
                running[pool.submit(_hash_or_error, path, advance)] = path
                if len(running) >= workers * QUEUED_PER_THREAD:
                    break
            if not running:
                return
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(ended), ended.result()


def _hash_or_error(path: Path, advance: Callable[[int], None] | None) -> str | OSError:
    try:
        return hash_file(path, advance)
    except OSError as error:
        return error
