"""What a lock demands of a step's files. Not part of a key: it says what the bytes must be, and changes none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trtx.cache.manifest import FileRecord
from trtx.errors import VerificationFailed


def check_expected(step: str, expected: Mapping[str, str], files: Iterable[FileRecord]) -> None:
    """Hold the files of a step against SHA-256 digests by path; without any, everything is allowed.

    Raises VerificationFailed for the first file that differs, is missing or is one too many.
    """
    if not expected:
        return
    found = {record.path: record.sha256 for record in files}
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) == found.get(path):
            continue
        wanted, got = expected.get(path), found.get(path)
        raise VerificationFailed(
            f"{step}: {path} is not what the lock says",
            why=f"the lock has {_describe(wanted)}, the source gave {_describe(got)}",
            fix="somebody changed the file under the same name: find out who; if it is right, remove the model or "
            "dataset from the lock with `trtx lock RECIPE --upgrade all`",
        )


def _describe(digest: str | None) -> str:
    return f"sha256 {digest}" if digest else "no such file"
