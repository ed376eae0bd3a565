"""One table at the end of the tests: what happened to runs on real clusters, and what became of them.

Rows travel with the reports of tests, so that they come from what was measured, and only from tests that ran.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pytest

PROPERTY = "slurm end"
COLUMNS = ("what happened", "state", "cause shown", "exit code", "steps begun", "most starts", "most finishes")


@dataclass(frozen=True)
class End:
    """What became of the step that a fault hit, as `trtx status` showed it, and of its run.

    `exit_code` is that of the last `trtx apply` or `attach`, None where the runner was driven without them. Starts and
    finishes are the lines that executions left in a file: the number of steps with a start, and the most of any step.
    """

    state: str
    cause: str
    exit_code: int | None
    steps: int
    starts: int
    finishes: int


def print_table(terminal: pytest.TerminalReporter) -> None:
    """Print the rows of all tests that noted one."""
    rows = []
    for report in (report for reports in terminal.stats.values() for report in reports):
        if getattr(report, "when", "") != "call":
            continue
        failed = "" if report.outcome == "passed" else f" ({report.outcome})"
        for name, value in report.user_properties:
            if name == PROPERTY:
                what, *cells = value
                rows.append((f"{what}{failed}", *("" if cell is None else str(cell) for cell in cells)))
    if rows:
        from trtx.console import plain_table

        terminal.section("Slurm: what happened to a run, and what became of it")
        terminal.write_line(plain_table(COLUMNS, rows))


def make_row(what: str, end: End) -> tuple[Any, ...]:
    return (what, *asdict(end).values())
