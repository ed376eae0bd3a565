"""Puts what the parts of tests/gpu/run.sh left into one file: collect.py FOLDER RESULT.

The figures of the benchmark stand at the top, those of the recipe under `recipe`; `parts` has the seconds and the exit
status of each part (124: its time was up), and of the tests what came of them.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def collect(folder: Path) -> dict[str, Any]:
    """The content of the file, of the parts that have run so far."""
    parts: dict[str, dict[str, Any]] = {}
    for line in (folder / "parts").read_text().splitlines():
        name, seconds, status = line.split()
        parts[name] = {"seconds": int(seconds), "status": int(status)}
    if "tests" in parts:
        parts["tests"] |= read_tests(folder / "tests.xml")
    result: dict[str, Any] = read(folder / "benchmark.json") or {}
    result["parts"] = parts
    if (recipe := read(folder / "recipe.json")) is not None:
        result["recipe"] = recipe
    return result


def read(path: Path) -> dict[str, Any] | None:
    """A JSON file; None when the part that writes it has not come to that, or was stopped while it did."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found


def read_tests(path: Path) -> dict[str, Any]:
    """Numbers of tests, and the names of those that failed; empty where pytest was stopped before it could tell."""
    if not path.is_file():
        return {}
    cases = list(ElementTree.parse(path).iter("testcase"))
    wrong = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(wrong) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in wrong],
    }


if __name__ == "__main__":
    result = collect(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")
