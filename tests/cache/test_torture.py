"""64 processes on one cache, some killed, every lock granted to everybody: nothing is torn, wrong, double or lost.

What the processes do and how they are judged stands in torture.py beside this file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In memory where that can be had: on a disk the test would time fsync.
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name) / "torture"


@pytest.mark.parametrize("seed", range(5))
def test_many_processes_with_kills_tear_lose_and_double_nothing(seed: int, folder: Path) -> None:
    script = Path(__file__).with_name("torture.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == {}
    assert sum(report["operations"].values()) >= 64 * 500 - 16  # One killed between doing and saying so.
    assert report["processes"] >= 64 + 10  # Of the 16 that are shot at, a few have just ended by themselves.
    assert report["outcomes"]["hit"] > 1000 and report["outcomes"]["published"] > 100


def test_nothing_in_the_cache_asks_the_file_system_for_locks() -> None:
    package = ROOT / "pipeline/trtx"
    sources = [*(package / "cache").glob("*.py"), package / "files.py", package / "stages/worker.py"]
    assert len(sources) > 10
    for path in sources:
        called = re.findall(r"\b(?:flock|lockf|F_SETLKW?|F_OFD_SETLKW?|filelock|portalocker)\(?", path.read_text())
        assert [word for word in called if word.endswith("(") or word.startswith("F_")] == [], path
