"""Processes of several machines share a remote: each step is made once, and a machine that dies is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import machine
from support.fleet import remotes_of
from support.remotes import CREDENTIALS, Place, environment_with


def start(folder: Path, remotes: str, counts: Path, delay_s: float = 0.0) -> subprocess.Popen[str]:
    argv = [sys.executable, machine.__file__, str(folder), remotes, str(counts), str(delay_s)]
    environ = environment_with(**CREDENTIALS)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.fixture(params=["file", "s3"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A remote that processes can share."""
    made: Place = request.getfixturevalue("s3_place") if request.param == "s3" else Place(f"file://{tmp_path}/share")
    return made


def test_processes_of_several_machines_make_each_step_once(tmp_path: Path, shared_place: Place) -> None:
    remotes, counts = remotes_of(shared_place), tmp_path / "counts"
    processes = [start(tmp_path / f"machine-{number}", remotes, counts, 0.3) for number in range(3)]
    results = [finish(process) for process in processes]
    made = counts.read_text().splitlines()
    assert len(made) == len(set(made)), "a step was made twice"
    for result in results:
        assert result["warnings"] == []
        assert {state for state, _ in result["steps"].values()} <= {"done", "not needed"}
    leaves = {reason for result in results for step, (_, reason) in result["steps"].items() if "package" in step}
    assert leaves == {"made in this run", "taken from remote shared in this run"}


def test_a_killed_machine_is_replaced_by_another(tmp_path: Path, shared_place: Place) -> None:
    remotes, counts = remotes_of(shared_place), tmp_path / "counts"
    killed = start(tmp_path / "one", remotes, counts, 30)
    while not counts.exists():
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    result = finish(start(tmp_path / "two", remotes, counts))
    assert {state for state, _ in result["steps"].values()} == {"done"}
