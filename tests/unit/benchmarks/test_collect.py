"""What tests/gpu/run.sh writes of its parts, however they ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COLLECT = Path(__file__).parents[2] / "gpu" / "collect.py"
TESTS = """<testsuites><testsuite name="pytest">
<testcase classname="tests.gpu.test_a" name="good"/>
<testcase classname="tests.gpu.test_a" name="bad"><failure message="x"/></testcase>
<testcase classname="tests.gpu.test_a" name="broken"><error message="x"/></testcase>
<testcase classname="tests.gpu.test_a" name="elsewhere"><skipped/></testcase>
</testsuite></testsuites>"""


def collect(folder: Path) -> dict[str, Any]:
    subprocess.run([sys.executable, str(COLLECT), str(folder), str(folder / "result.json")], check=True)
    found: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    return found


def test_every_part_has_its_place_and_failed_tests_their_names(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("tests 100 1\nrecipe 300 0\nbenchmark 200 0\n")
    (tmp_path / "tests.xml").write_text(TESTS)
    (tmp_path / "recipe.json").write_text('{"first_s": 300}')
    (tmp_path / "benchmark.json").write_text('{"rows": [1]}')
    assert collect(tmp_path) == {
        "rows": [1],
        "recipe": {"first_s": 300},
        "parts": {
            "tests": {
                "seconds": 100,
                "status": 1,
                "passed": 1,
                "skipped": 1,
                "failed": ["tests.gpu.test_a::bad", "tests.gpu.test_a::broken"],
            },
            "recipe": {"seconds": 300, "status": 0},
            "benchmark": {"seconds": 200, "status": 0},
        },
    }


def test_parts_that_were_stopped_leave_what_they_had_written(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("tests 240 124\nbenchmark 300 124\n")
    (tmp_path / "benchmark.json").write_text('{"rows": [')
    assert collect(tmp_path) == {
        "parts": {"tests": {"seconds": 240, "status": 124}, "benchmark": {"seconds": 300, "status": 124}}
    }
