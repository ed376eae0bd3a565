"""Deleting folders of the cache: first out of sight by one rename, then for good."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path

TRASH = "trash-"


def move_to_trash(root: Path, folder: Path) -> Path | None:
    """Rename a folder of the cache `root` out of everybody's sight; None when it is gone already.

    Readers see the whole entry or none. Raises OSError when it cannot be moved.
    """
    trash = root / "tmp" / f"{TRASH}{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        make_movable(folder)
        folder.rename(trash)
        return trash
    return None


def make_movable(folder: Path) -> None:
    """Moving a folder to another parent needs write permission on the folder itself."""
    if not folder.is_symlink():
        folder.chmod(0o755)


def remove_tree(root: Path) -> None:
    """Delete a folder, write-protected or not; links are not followed.

    What vanishes meanwhile, or belongs to another user of the cache, is no error.
    """
    if root.is_symlink():
        root.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(root):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o755)
    shutil.rmtree(root, ignore_errors=True)
