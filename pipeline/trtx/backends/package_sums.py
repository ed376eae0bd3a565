"""SHA256SUMS of a deployment folder. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from trtx.errors import VerificationFailed
from trtx.files import sha256_file, walk_files

SUMS_NAME = "SHA256SUMS"


def make_sums(root: Path) -> str:
    """Every file below `root` in the format of sha256sum(1), sorted by path; SHA256SUMS itself is left out."""
    names = sorted(path.relative_to(root).as_posix() for path in plain_files(root))
    return "".join(f"{sha256_file(root / name)}  {name}\n" for name in names if name != SUMS_NAME)


def plain_files(root: Path) -> list[Path]:
    """Files below a folder. Raises VerificationFailed for links and for names that SHA256SUMS cannot hold."""
    found = list(walk_files(root))
    for path in found:
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or not path.is_file():
            raise VerificationFailed(f"{name} is not a plain file", why=f"it lies in {root}")
        if not name.isprintable() or "\\" in name:
            raise VerificationFailed(
                f"{name!r} cannot be packaged", why="control characters or a backslash in its name"
            )
    return found


def find_damage(root: Path) -> tuple[str, ...]:
    """What of a deployment folder is not what SHA256SUMS says, one sentence each; nothing when all is well.

    Raises VerificationFailed when there is no such file, or it is none.
    """
    try:
        rows = [line.partition("  ") for line in (root / SUMS_NAME).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise VerificationFailed(f"{root} has no {SUMS_NAME} that can be read", why=str(error)) from error
    told = {name: digest for digest, _, name in rows}
    here = {path.relative_to(root).as_posix() for path in walk_files(root)} - {SUMS_NAME}
    problems = [f"{name} is missing" for name in sorted(told.keys() - here)]
    problems += [f"{name} is not in {SUMS_NAME}" for name in sorted(here - told.keys())]
    problems += [
        f"{name} has other bytes" for name in sorted(told.keys() & here) if sha256_file(root / name) != told[name]
    ]
    return tuple(problems)
