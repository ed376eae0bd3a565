"""One table at the end of the tests: the Triton repository of every TensorRT-LLM release, as it was checked."""

from __future__ import annotations

import pytest

PROPERTY = "triton repository"
COLUMNS = ("release", "flow", "models", "parameters set", "left to the backend", "not written", "outcome")


def print_triton_table(terminal: pytest.TerminalReporter) -> None:
    """Print the rows of all tests that noted one."""
    rows = []
    for report in (report for reports in terminal.stats.values() for report in reports):
        if getattr(report, "when", "") == "call":
            rows += [(*map(str, value), report.outcome) for name, value in report.user_properties if name == PROPERTY]
    if rows:
        from trtx.console import plain_table

        terminal.section("Triton: the repository of every TensorRT-LLM release")
        terminal.write_line(plain_table(COLUMNS, rows))
