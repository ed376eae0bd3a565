"""Reading the files of a recipe: text, or one message about what is in the way."""

from __future__ import annotations

import errno
from pathlib import Path

from trtx.errors import UsageProblem, nearest
from trtx.recipe.problems import Mark, Problem, RecipeInvalid


def read_text(path: Path) -> str:
    """The text of a recipe file. Raises UsageProblem when it cannot be read, RecipeInvalid when it is not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _unreadable_file(path, error) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        mark = Mark(before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1)
        is_utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        why = "it looks like UTF-16" if is_utf16 else f"byte 0x{raw[error.start]:02X} is not part of a UTF-8 character"
        problem = Problem(str(path), Mark(1, 1) if is_utf16 else mark, "the file is not UTF-8", why, "save it as UTF-8")
        raise RecipeInvalid([problem]) from None


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
