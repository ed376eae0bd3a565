"""Reading the files of a recipe: text, or one message about what is in the way."""

from __future__ import annotations

import errno
from pathlib import Path

from trtx.errors import UsageProblem, nearest
from trtx.recipe.problems import Mark, Problem, RecipeInvalid
from trtx.recipe.tree import MAX_CHARS

MAX_BYTES = MAX_CHARS


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises UsageProblem when it cannot be read, RecipeInvalid when it is too long or not UTF-8.
    """
    if not _is_utf8(str(path)):
        why = "plans and locks are UTF-8, and name the files that they were made from"
        raise UsageProblem(f"the name of the recipe {path} is not UTF-8", why=why, fix="rename it")
    try:
        with path.open("rb") as stream:
            # Not all of it: a device such as /dev/zero has no end.
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable_file(path, error) from error
    if len(raw) > MAX_BYTES:
        what = f"the file is larger than {MAX_BYTES >> 20} MiB"
        raise RecipeInvalid([Problem(str(path), Mark(1, 1), what, fix="shorten it")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        mark = Mark(before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1)
        is_utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        why = "it looks like UTF-16" if is_utf16 else f"byte 0x{raw[error.start]:02X} is not part of a UTF-8 character"
        problem = Problem(str(path), Mark(1, 1) if is_utf16 else mark, "the file is not UTF-8", why, "save it as UTF-8")
        raise RecipeInvalid([problem]) from None


def _is_utf8(name: str) -> bool:
    """Whether the name of a file can be written down; Python reads other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unreadable_file(path: Path, error: OSError) -> UsageProblem:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        names = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        match = nearest(path.name, names)
        fix = f"did you mean '{path.with_name(match)}'?" if match else f"`trtx init {path}` writes one to start from"
        return UsageProblem(f"there is no recipe {path}", fix=fix)
    if error.errno == errno.EISDIR:
        names = sorted(item.name for item in path.glob("*.y*ml"))
        fix = f"it holds {', '.join(names[:5])}" if names else "give a YAML file"
        return UsageProblem(f"{path} is a folder, not a recipe", fix=fix)
    return UsageProblem(f"the recipe {path} cannot be read", why=error.strerror or "")
