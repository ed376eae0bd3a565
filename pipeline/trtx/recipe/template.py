"""References inside texts: `${vars.x}`, `${env.X}`, `${env.X:-default}`; `$${` is a plain `${`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from trtx.errors import nearest

VARIABLE = re.compile(r"vars((?:\.[^.\s{}:$]+)+)")
ENVIRONMENT = re.compile(r"env\.([A-Za-z_][A-Za-z0-9_]*)(?P<default>:-(?P<text>.*))?", re.DOTALL)


class BadTemplate(Exception):
    """A text whose references cannot be read; `part` is the piece of it that is wrong."""

    def __init__(self, what: str, part: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.part, self.why, self.fix = part, why, fix


@dataclass(frozen=True)
class Reference:
    """One `${…}`, as written in `raw`. `names` lead into vars, or hold the name of an environment variable.

    `default` is the text after `:-`, which may hold references itself; None without one.
    """

    raw: str
    kind: Literal["vars", "env"]
    names: tuple[str, ...]
    default: str | None = None


Piece = str | Reference


@functools.lru_cache(maxsize=4096)
def read_template(text: str) -> tuple[Piece, ...]:
    """A text as plain texts and references. Raises BadTemplate."""
    pieces: list[Piece] = []
    plain, at = "", 0
    while (found := text.find("${", at)) >= 0:
        if found > at and text[found - 1] == "$":
            plain, at = plain + text[at : found - 1] + "${", found + 2
            continue
        end = _find_end(text, found)
        if plain := plain + text[at:found]:
            pieces.append(plain)
        plain, at = "", end
        pieces.append(_read_reference(text[found:end]))
    if plain := plain + text[at:]:
        pieces.append(plain)
    return tuple(pieces)


def _find_end(text: str, start: int) -> int:
    """Where the reference that begins at `start` ends. Braces of a default are balanced."""
    depth = 0
    for at in range(start + 1, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at + 1
    raise BadTemplate("'${' is not closed", text[start:], fix="close it with }, or write $${ for a plain ${")


def _read_reference(raw: str) -> Reference:
    inner = raw[2:-1]
    if match := VARIABLE.fullmatch(inner):
        return Reference(raw, "vars", tuple(match[1][1:].split(".")))
    if match := ENVIRONMENT.fullmatch(inner):
        return Reference(raw, "env", (match[1],), match["text"] if match["default"] else None)
    raise _bad_reference(raw, inner)


def _bad_reference(raw: str, inner: str) -> BadTemplate:
    what, why = f"'{raw}' cannot be read", ""
    kind, _, rest = inner.partition(".")
    name = re.sub(r"[^A-Za-z0-9_.-].*", "", rest, flags=re.DOTALL)
    if inner != inner.strip():
        fix = f"write ${{{inner.strip()}}}, without spaces"
    elif kind == "vars" and ":" in rest:
        why, fix = "a variable has its value in vars, where a default belongs too", f"write ${{vars.{name}}}"
    elif kind == "vars":
        fix = "write ${vars.NAME}"
    elif kind == "env":
        name = re.sub(r"[^A-Za-z0-9_].*", "", rest, flags=re.DOTALL)
        fix = f"write ${{env.{name or 'NAME'}}} or ${{env.{name or 'NAME'}:-default}}"
    elif meant := nearest(kind, ("vars", "env")) if rest else None:
        fix = f"did you mean ${{{meant}.{rest}}}?"
    else:
        why = "a reference begins with vars or env"
        fix = f"write ${{vars.{inner}}} or ${{env.{inner}}}; a plain {raw} is $" + raw
    return BadTemplate(what, raw, why=why, fix=fix)
