"""What was hashed before: the stat of every file of an entry at that time, and when the entry was last used.

A file whose inode, size, mtime and ctime did not change since it was hashed has not changed: ctime cannot be set by
programs, and every write moves it. The memo is this cache's own note, never evidence for anybody else; without it
files are only read again. Its own mtime is the entry's last use.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.files import Stamp, parse_json, read_file

# Timestamps move with the kernel's tick, 10 ms at most (HZ=100): what was touched within one tick of being hashed may
# be written again without its ctime showing it.
TICK_NS = 20_000_000
# File systems that keep whole seconds.
COARSE_TICK_NS = 1_020_000_000
# A use is noted at most this often, so that hits write nothing most of the time.
USE_NOTED_EVERY_S = 3600.0


def settle(stamps: Iterable[Stamp]) -> None:
    """Wait until a write to any of the files would move its ctime: at most 20 ms, a second where clocks are coarse."""
    newest = max((stamp[3] for stamp in stamps), default=0)
    tick_ns = COARSE_TICK_NS if newest % 1_000_000_000 == 0 else TICK_NS
    age_ns = time.time_ns() - newest
    if 0 <= age_ns < tick_ns:
        time.sleep((tick_ns - age_ns) / 1e9)


class Memo:
    """The memo folder of a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def read(self, key: str) -> dict[str, Stamp]:
        """Relative path → stamp; empty when there is no memo, or a damaged one."""
        try:
            memo = parse_json(read_file(self.path(key)))
        except (OSError, ValueError):
            return {}
        if not isinstance(memo, dict):
            return {}
        return {path: stamp for path, stamp in memo.items() if isinstance(stamp, list)}

    def write(self, key: str, memo: Mapping[str, Stamp], *, is_use: bool = True) -> None:
        """Remember stamps. A cache on a read-only or full disk is still usable: it only hashes again."""
        path = self.path(key)
        used = None if is_use else self.last_use(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
        try:
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()
            temporary.write_text(json.dumps(memo))
            if used is not None:
                os.utime(temporary, (used, used))
            temporary.replace(path)  # Not flushed: a memo lost or torn by a crash is only made again.
        except (OSError, EnvironmentProblem):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def note_use(self, key: str) -> None:
        """Set the entry's last use to now, unless that was noted within the last hour."""
        path = self.path(key)
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) > USE_NOTED_EVERY_S:
                os.utime(path)

    def last_use(self, key: str) -> float | None:
        """Seconds since the epoch, or None when it is not known."""
        try:
            return self.path(key).stat().st_mtime
        except OSError:
            return None
