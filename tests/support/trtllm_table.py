"""One table at the end of the tests: TensorRT-LLM's releases and flows, and what was seen to hold for each.

Rows travel with the reports of tests, so that they come from what was measured, and only from tests that ran. A test
notes what it saw with `record_property(PROPERTY, make_note(...))`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pytest

from trtx.backends.tensorrt_llm.releases import known_releases

PROPERTY = "trtllm"
Column = Literal["argv accepted", "refusals right", "Triton repository complete"]
COLUMNS: tuple[Column, ...] = ("argv accepted", "refusals right", "Triton repository complete")
FLOWS = ("engine", "pytorch")


def make_note(column: Column, release: str, flow: str, count: int = 1) -> dict[str, Any]:
    """What one test has seen: so many cases of a column for one release and flow."""
    return {"column": column, "release": release, "flow": flow, "count": count}


def print_table(terminal: pytest.TerminalReporter) -> None:
    """Print the sums of all notes, with the number of failed tests that would have added to them."""
    seen: Counter[tuple[str, str, str]] = Counter()
    failed: Counter[tuple[str, str, str]] = Counter()
    for report in (report for reports in terminal.stats.values() for report in reports):
        if getattr(report, "when", "") != "call":
            continue
        for name, note in report.user_properties:
            if name == PROPERTY:
                key = (note["release"], note["flow"], note["column"])
                if report.outcome == "passed":
                    seen[key] += note["count"]
                else:
                    failed[key] += 1
    if not seen and not failed:
        return
    terminal.section("TensorRT-LLM: cases that hold, by release and flow")
    terminal.write_line(f"{'release':24} {'flow':8} " + " ".join(f"{column:>27}" for column in COLUMNS))
    for release in known_releases():
        for flow in FLOWS:
            keys = [(release, flow, column) for column in COLUMNS]
            if any(seen[key] or failed[key] for key in keys):
                cells = (f"{seen[key] or '-'}{f' ({failed[key]} failed)' if failed[key] else ''}" for key in keys)
                terminal.write_line(f"{release:24} {flow:8} " + " ".join(f"{cell:>27}" for cell in cells))
