"""Problems of a recipe: each with its place in the file, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from trtx.errors import UsageProblem

Path = tuple[str | int, ...]
Severity = Literal["error", "warning"]

# Longer source lines are shown around the caret only.
SHOWN_WIDTH = 100


class Mark(NamedTuple):
    """A place in a file: line and column from 1, and how many characters belong to it."""

    line: int
    col: int
    width: int = 1


class Place(NamedTuple):
    """Where a value stands, and its key where it has one."""

    value: Mark
    key: Mark | None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `source` is the text of its line, `path` the dotted path of the value it is about."""

    file: str
    mark: Mark
    what: str
    why: str = ""
    fix: str = ""
    severity: Severity = "error"
    source: str = ""
    path: str = ""

    @property
    def line(self) -> int:
        return self.mark.line

    @property
    def col(self) -> int:
        return self.mark.col

    def render(self) -> str:
        """`file:line:col: error: what`, the source line with a caret under it, then why and fix."""
        lines = [f"{self.file}:{self.line}:{self.col}: {self.severity}: {self.what}"]
        if self.source.strip():
            text, start = _excerpt(self.source, self.col - 1)
            width = max(1, min(self.mark.width, len(text) - start))
            number = f"{self.line:>5}"
            lines += [f"{number} | {text}", f"{'':5} | {' ' * start}{'^' * width}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The problem for `-o json`; line and column count from 1."""
        plain = asdict(self)
        mark = plain.pop("mark")
        return {"file": plain.pop("file"), "line": mark[0], "col": mark[1], **plain}


def _excerpt(source: str, index: int) -> tuple[str, int]:
    """The part of a source line around a column, tabs as single spaces, and the column within that part."""
    text = source.replace("\t", " ").rstrip()
    if len(text) <= SHOWN_WIDTH or index < SHOWN_WIDTH * 3 // 4:
        return text[:SHOWN_WIDTH], min(index, SHOWN_WIDTH)
    start = index - SHOWN_WIDTH // 2
    return "…" + text[start : start + SHOWN_WIDTH], index - start + 1


class RecipeInvalid(UsageProblem):
    """A recipe with problems. Never raised without at least one error among them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.mark))
        num_errors = sum(problem.severity == "error" for problem in self.problems)
        super().__init__(f"{num_errors} problem{'s' if num_errors != 1 else ''} in {self.problems[0].file}")

    def render(self) -> str:
        """All problems in the order of the file, and their number."""
        return "\n\n".join([*(problem.render() for problem in self.problems), f"error: {self.what}"])
