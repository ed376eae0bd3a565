"""Problems of a recipe: each with its place in the file, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from trtx.errors import UsageProblem

Path = tuple[str | int, ...]
Severity = Literal["error", "warning"]
# Where a value comes from: a file or --set, as it stands there; through a reference; or from the schema.
Kind = Literal["file", "set", "environment", "variable", "matrix", "default"]

# Longer source lines are shown around the caret only.
SHOWN_WIDTH = 100


class Mark(NamedTuple):
    """A place in a file: line and column from 1, and how many characters belong to it."""

    line: int
    col: int
    width: int = 1


@dataclass(frozen=True, eq=False)
class Source:
    """A text that a recipe is made of: a file, or all options of one name, one on each line."""

    name: str
    lines: Sequence[str]
    is_option: bool = False

    def line(self, mark: Mark) -> str:
        """The text of a mark's line."""
        return self.lines[mark.line - 1] if mark.line <= len(self.lines) else ""

    def within(self, mark: Mark) -> Mark:
        """A mark of what is missing at the end, which a parser may put into a line after the last one."""
        last = len(self.lines)
        return mark if mark.line <= last or not last else Mark(last, len(self.lines[-1]) + 1)

    def at(self, mark: Mark) -> str:
        """A place in one word for people: `base.yaml:12:5`, or `--set engine.dtype=float32`."""
        return f"{self.name} {self.line(mark)}" if self.is_option else f"{self.name}:{mark.line}:{mark.col}"

    def problem(
        self, mark: Mark, what: str, *, why: str = "", fix: str = "", note: str = "", path: Path = ()
    ) -> Problem:
        """A problem at a place of this text."""
        mark = self.within(mark)
        return Problem(self.name, mark, one_line(what), why, fix, source=self.line(mark), path=dotted(path), note=note)


class Place(NamedTuple):
    """Where a value stands, and its key where it has one, with how the value came there.

    The key stands in `key_source`, which is `source` unless said otherwise. `note` names what led to the value, such
    as "from ${vars.batch} in recipe.yaml:9:21".
    """

    value: Mark
    key: Mark | None
    source: Source
    key_source: Source | None = None
    kind: Kind = "file"
    note: str = ""

    @property
    def where(self) -> str:
        return self.source.at(self.value)


def dotted(path: Path) -> str:
    """`targets.h100.quantization[0]`; a name that holds a dot stands in quotes, as --set reads it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        shown = f'"{part}"' if any(mark in part for mark in '.[]="') or not part else part
        text += f".{shown}" if text else shown
    return text


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    `source` is the text of its line, `path` the dotted path of the value it is about, `note` how that value came to be
    where it is, when it stands elsewhere.
    """

    file: str
    mark: Mark
    what: str
    why: str = ""
    fix: str = ""
    severity: Severity = "error"
    source: str = ""
    path: str = ""
    note: str = ""

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
        if self.note:
            lines.append(f"  note: {self.note}")
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


def one_line(text: str) -> str:
    """A text of the same length without line breaks and whatever else a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _excerpt(source: str, index: int) -> tuple[str, int]:
    """The part of a source line around a column, and the column within that part.

    Tabs and line breaks of options are single spaces.
    """
    text = one_line(source).rstrip()
    if len(text) <= SHOWN_WIDTH or index < SHOWN_WIDTH * 3 // 4:
        return text[:SHOWN_WIDTH], min(index, SHOWN_WIDTH)
    start = index - SHOWN_WIDTH // 2
    return "…" + text[start : start + SHOWN_WIDTH], index - start + 1


class RecipeInvalid(UsageProblem):
    """A recipe with problems. Never raised without at least one error among them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.mark))
        num_errors = sum(problem.severity == "error" for problem in self.problems)
        files = " and ".join(dict.fromkeys(problem.file for problem in self.problems if problem.severity == "error"))
        super().__init__(f"{num_errors} problem{'s' if num_errors != 1 else ''} in {files or self.problems[0].file}")

    def render(self) -> str:
        """All problems in the order of the file, and their number."""
        return "\n\n".join([*(problem.render() for problem in self.problems), f"error: {self.what}"])

    def to_json(self) -> dict[str, Any]:
        """The error for tools, with every problem."""
        return super().to_json() | {"problems": [problem.to_json() for problem in self.problems]}
