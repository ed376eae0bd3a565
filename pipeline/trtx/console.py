"""What people see: messages and tables on stderr, JSON on stdout. Rich is imported only to draw on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

# Styles by the name of a state or a severity; rich's names of ANSI colours.
STYLES = {"error": "bold red", "warning": "yellow", "ok": "green", "note": "dim"}
ANSI = {"bold red": "1;31", "yellow": "33", "green": "32", "dim": "2", "cyan": "36", "bold": "1"}


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal; False for closed and replaced streams."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def wants_color(environ: Mapping[str, str], stream: TextIO, *, no_color: bool = False) -> bool:
    """Whether to colour a stream: a terminal, unless --no-color, `TERM=dumb`, or NO_COLOR (https://no-color.org)."""
    if no_color or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


@dataclass(frozen=True)
class Console:
    """Where output goes. Everything for people goes to `err`; `out` carries JSON and nothing else.

    `verbosity` is -1 with -q, 0, 1 with -v.
    """

    out: TextIO
    err: TextIO
    color: bool
    verbosity: int = 0

    @property
    def interactive(self) -> bool:
        """Whether a person watches, so that lines may be redrawn."""
        return is_terminal(self.err)

    def say(self, text: str, *, style: str | None = None) -> None:
        """Print one message; silent with -q."""
        if self.verbosity >= 0:
            print(self.paint(text, style), file=self.err, flush=True)

    def detail(self, text: str) -> None:
        """Print one message only with -v."""
        if self.verbosity > 0:
            print(self.paint(text, "note"), file=self.err, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, also with -q; `warning:` is put before a text that does not have it."""
        self._print_marked(text if "warning:" in text else f"warning: {text}", "warning")

    def error(self, text: str) -> None:
        """Print an error as rendered by TrtxError.render, also with -q."""
        self._print_marked(text, "error")

    def command(self, line: str) -> None:
        """Print a line for the CI system that reads this process's output, also with -q."""
        print(line, file=self.err, flush=True)

    def _print_marked(self, text: str, severity: str) -> None:
        word = f"{severity}:"
        print(text.replace(word, self.paint(word, severity)), file=self.err, flush=True)

    def json(self, value: Any) -> None:
        """Print one JSON document on stdout."""
        print(json.dumps(value, indent=2, ensure_ascii=False), file=self.out, flush=True)

    def paint(self, text: str, style: str | None) -> str:
        """Wrap text in the ANSI codes of a style; unchanged without colour."""
        code = ANSI.get(STYLES.get(style or "", style or ""))
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and code and text else text

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        styles: Sequence[str | None] = (),
        right: Sequence[str] = (),
    ) -> None:
        """Print a table; `styles` holds one style per row, `right` the columns that are right-aligned.

        Lines on a terminal are drawn by rich and fold to its width; elsewhere columns are padded with spaces.
        """
        if self.verbosity < 0:
            return
        if self.interactive:
            self._rich_table(columns, rows, styles, right)
        else:
            print(plain_table(columns, rows, right=right), file=self.err, flush=True)

    def _rich_table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        styles: Sequence[str | None],
        right: Sequence[str],
    ) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for number, row in enumerate(rows):
            style = styles[number] if number < len(styles) else None
            table.add_row(*(Text(cell) for cell in row), style=STYLES.get(style or "", style))
        RichConsole(file=self.err, no_color=not self.color, highlight=False).print(table)


def make_console(environ: Mapping[str, str], *, no_color: bool = False, verbosity: int = 0) -> Console:
    """The console on the process's own streams."""
    return Console(sys.stdout, sys.stderr, wants_color(environ, sys.stderr, no_color=no_color), verbosity)


def silence_stdout() -> None:
    """Nobody reads on: what is left to print goes nowhere, also what Python prints when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A table as text: two spaces between columns, no trailing spaces."""
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, cells, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in (columns, *rows))
