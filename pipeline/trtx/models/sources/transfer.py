"""Copying source files and knowing what was copied. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.files import CHUNK_BYTES, canonical_json, disk_errors, free_bytes, read_json, sha256_bytes
from trtx.models.sources.select import SAFETENSORS_INDEX

# (relative path, bytes, hex digest) of one file.
FileDigest = tuple[str, int, str]


def tree_digest(files: list[FileDigest]) -> str:
    """One digest of a set of files, whatever order they come in."""
    return sha256_bytes(canonical_json(sorted(files)))


def copy_stream(source: BinaryIO, target: Path, *watchers: Callable[[bytes], None]) -> str:
    """Copy an open file to `target`, showing each chunk to the watchers; the hex SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                stream.write(chunk)
                for watch in watchers:
                    watch(chunk)
    return digest.hexdigest()


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """`disk_errors` for code that writes through safetensors, whose own error class hides the system's error number."""
    from safetensors import SafetensorError

    with disk_errors(path):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start writing what cannot fit.

    Raises EnvironmentProblem.
    """
    free = free_bytes(folder)
    if needed_bytes > free:
        raise EnvironmentProblem(
            f"not enough disk space in {folder}",
            why=f"{needed_bytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
            fix="free some space or point TRTX_CACHE_DIR at a larger disk",
        )


def check_shards(folder: Path, where: str) -> None:
    """Hold the index of sharded weights against the files present.

    Raises VerificationFailed for a missing shard or an unreadable index.
    """
    index = folder / SAFETENSORS_INDEX
    if not index.exists():
        return
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationFailed(
            f"{SAFETENSORS_INDEX} of {where} cannot be read", why=str(error), fix="save or upload the model again"
        ) from error
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise VerificationFailed(
            f"{where} lacks {len(missing)} of {len(shards)} weight files",
            why=f"{SAFETENSORS_INDEX} names {missing[0]}, which is not there",
            fix="save or upload the model again",
        )
