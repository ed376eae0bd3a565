"""The local runner starts, limits, reports and ends processes, and all that they started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trtx.errors import EnvironmentProblem
from trtx.processes import describe_this_process, is_gone
from trtx.runners.base import RUNNERS, Ended, Task, find_runner
from trtx.runners.local import LocalRunner


def task(tmp_path: Path, script: str, step: str = "step", *, exclusive: bool = False) -> Task:
    return Task(
        step=step,
        argv=(sys.executable, "-c", script),
        folder=tmp_path,
        environment={"PATH": os.environ["PATH"], "GREETING": "hello"},
        log=tmp_path / f"{step}.log",
        exclusive=exclusive,
    )


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


def test_a_task_s_output_goes_to_its_log_and_its_exit_code_is_reported(tmp_path: Path) -> None:
    runner = LocalRunner(1)
    runner.start(task(tmp_path, "import os, sys; print(os.environ['GREETING']); print('oh', file=sys.stderr); exit(3)"))
    assert runner.wait(20) == [Ended("step", exit_code=3, signal=None)]
    assert sorted((tmp_path / "step.log").read_text().split()) == ["hello", "oh"]


def test_a_task_sees_its_environment_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DRIVER", "1")
    runner = LocalRunner(1)
    runner.start(task(tmp_path, "import os; assert 'SECRET_OF_THE_DRIVER' not in os.environ"))
    assert runner.wait(20)[0].exit_code == 0


def test_a_killed_task_is_reported_with_its_signal(tmp_path: Path) -> None:
    runner = LocalRunner(1)
    runner.start(task(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert runner.wait(20) == [Ended("step", exit_code=None, signal=9)]


def test_there_is_room_for_so_many_tasks_and_an_exclusive_one_runs_alone(tmp_path: Path) -> None:
    runner, long = LocalRunner(2), "import time; time.sleep(60)"
    assert runner.has_room(exclusive=True)
    runner.start(task(tmp_path, long, "a"))
    assert runner.has_room(exclusive=False)
    assert not runner.has_room(exclusive=True)
    runner.start(task(tmp_path, long, "b"))
    assert not runner.has_room(exclusive=False)
    runner.stop(grace_s=5)
    runner.start(task(tmp_path, long, "c", exclusive=True))
    assert not runner.has_room(exclusive=False)
    runner.stop(grace_s=5)


def test_waiting_ends_at_its_timeout(tmp_path: Path) -> None:
    runner = LocalRunner(1)
    runner.start(task(tmp_path, "import time; time.sleep(60)"))
    assert runner.wait(0.05) == []
    runner.stop(grace_s=5)


def test_stopping_kills_what_ignores_the_polite_request(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""
    runner = LocalRunner(1)
    runner.start(task(tmp_path, script))
    wait_for_file(ready)
    began = time.monotonic()
    runner.stop(grace_s=0.2)
    assert time.monotonic() - began < 10
    assert runner.has_room(exclusive=True)


def test_what_a_task_left_behind_ends_with_it(tmp_path: Path) -> None:
    script = f"""
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
"""
    runner = LocalRunner(1)
    runner.start(task(tmp_path, script))
    assert runner.wait(20)[0].exit_code == 0
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_missing_program_is_one_message(tmp_path: Path) -> None:
    absent = Task("step", ("/nonexistent/python",), tmp_path, {}, tmp_path / "log")
    with pytest.raises(EnvironmentProblem, match="cannot start /nonexistent/python"):
        LocalRunner(1).start(absent)


def test_every_listed_runner_can_be_made() -> None:
    for kind in RUNNERS:
        assert find_runner(kind).make_runner(1).wait(0) == []


def test_a_process_that_ended_is_known_to_be_gone() -> None:
    assert not is_gone(describe_this_process())
    script = "import json; from trtx.processes import describe_this_process as d; print(json.dumps(d()))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    note = json.loads(answer.stdout)
    assert is_gone(note)
    assert not is_gone(note | {"host": "another-host"})
