"""What failed steps leave for people to look at. Nothing here is ever served as a result.

A failure is a folder failures/<first 16 digits of the key>-<UTC time>-<id>/; the full key is in its files. The
oldest are dropped when there are more than MAX_FAILURES or they take more than MAX_TOTAL_BYTES.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from trtx.cache.inspection import list_files
from trtx.cache.removal import remove_tree

MAX_FAILURES = 32
MAX_TOTAL_BYTES = 256 << 20


def open_failure(root: Path, key: str) -> Path:
    """A new folder for one failure. Raises OSError when it cannot be made."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    folder = root / "failures" / f"{key[:16]}-{stamp}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder


def list_failures(root: Path) -> list[Path]:
    """The folders of all failures, the oldest first."""
    found = (root / "failures").glob("*-*-*")
    return sorted(found, key=lambda folder: folder.name.split("-", 1)[1])


def trim_failures(root: Path, *, keep: int = MAX_FAILURES, max_bytes: int = MAX_TOTAL_BYTES) -> list[Path]:
    """Delete the oldest failures until the rest is within its bounds; returns what was deleted."""
    sizes = {folder: folder_bytes(folder) for folder in list_failures(root)}
    dropped: list[Path] = []
    for folder in list(sizes):
        if len(sizes) <= keep and sum(sizes.values()) <= max_bytes:
            break
        remove_tree(folder)
        del sizes[folder]
        dropped.append(folder)
    return dropped


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 when it is gone."""
    try:
        return sum(info.st_size for _, info in list_files(folder))
    except OSError:
        return 0
