"""Workers that need one key at the same time: one makes it, whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import WorkerProcess, start_worker, write_job
from support.plans import plan_of

from trtx.cache.store import Store
from trtx.plan.record import describe_progress
from trtx.plan.steps import Plan
from trtx.stages.job import PROGRESS_NAME, attempt_folder, read_result

STEP = "download/model"
# Each execution leaves a line; the first of two goes on when the test writes to the pipe.
APPEND = "open(os.environ['RUNS'], 'a').write(f'{os.getpid()}\\n')"
WAIT = f"{APPEND}; open(os.environ['GATE']).read()"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    os.mkfifo(tmp_path / "gate")
    return {**os.environ, "RUNS": str(tmp_path / "runs"), "GATE": str(tmp_path / "gate")}


def line_with(worker: subprocess.Popen[str], text: str) -> str:
    assert worker.stdout is not None
    return next(line for line in worker.stdout if text in line)


def state(job: Path, attempt: int = 1) -> str:
    result = read_result(attempt_folder(job.parent, attempt))
    assert result is not None
    return result.state


def start_two(tmp_path: Path, plan: Plan, environ: dict[str, str]) -> tuple[WorkerProcess, Path, Path]:
    """A worker that is half-way through its stage, and the jobs of it and of another one."""
    jobs = write_job(tmp_path / "a", plan, STEP), write_job(tmp_path / "b", plan, STEP)
    first = start_worker(jobs[0], f"print('half-way', flush=True); {WAIT}", environ)
    line_with(first, "half-way")
    return first, *jobs


def test_two_workers_that_race_for_one_key_make_it_once(tmp_path: Path, plan: Plan, environ: dict[str, str]) -> None:
    first, job, other_job = start_two(tmp_path, plan, environ)
    with first, start_worker(other_job, APPEND, environ) as second:
        told = line_with(second, "waiting")
        assert f"waiting for process {first.pid} on" in told
        progress = json.loads((attempt_folder(other_job.parent, 1) / PROGRESS_NAME).read_text())
        assert describe_progress(progress) == told.strip()
        Path(environ["GATE"]).write_text("go")
        assert first.wait(30) == 0 and second.wait(30) == 0
    assert (state(job), state(other_job)) == ("published", "adopted")
    assert len(Path(environ["RUNS"]).read_text().splitlines()) == 1


def test_when_the_one_that_works_is_killed_the_other_takes_over(
    tmp_path: Path, plan: Plan, environ: dict[str, str]
) -> None:
    first, _, other_job = start_two(tmp_path, plan, environ)
    with first, start_worker(other_job, APPEND, environ) as second:
        line_with(second, "waiting")
        first.kill()
        first.wait(30)
        assert "is gone: taking over" in line_with(second, "gone")
        assert second.wait(30) == 0
    assert state(other_job) == "published"
    assert len(Path(environ["RUNS"]).read_text().splitlines()) == 2
    assert list((Path(plan.cache_dir) / "leases").iterdir()) == []


def test_a_worker_stopped_while_it_waits_says_so_and_the_other_goes_on(
    tmp_path: Path, plan: Plan, environ: dict[str, str]
) -> None:
    first, job, other_job = start_two(tmp_path, plan, environ)
    with first, start_worker(other_job, APPEND, environ) as second:
        line_with(second, "waiting")
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 130
        Path(environ["GATE"]).write_text("go")
        assert first.wait(30) == 0
    assert (state(job), state(other_job)) == ("published", "failed")


@pytest.fixture
def read_only_leases(plan: Plan) -> Iterator[Path]:
    store = Store(Path(plan.cache_dir))
    store.prepare()
    folder = store.root / "leases"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def let_through(worker: subprocess.Popen[str], gate: str) -> None:
    """Open the gate until a worker has passed it: one that comes to it later would wait for another opening."""
    while worker.poll() is None:
        try:
            os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # Nobody waits there now.
            time.sleep(0.01)


def test_where_leases_cannot_be_written_both_work_and_one_adopts(
    tmp_path: Path, plan: Plan, environ: dict[str, str], read_only_leases: Path
) -> None:
    jobs = write_job(tmp_path / "a", plan, STEP), write_job(tmp_path / "b", plan, STEP)
    workers = [start_worker(job, f"print('half-way', flush=True); {WAIT}", environ) for job in jobs]
    for worker in workers:
        assert "leases do not work" in line_with(worker, "leases")
        line_with(worker, "half-way")
    for worker in workers:
        let_through(worker, environ["GATE"])
        with worker:
            assert worker.wait(30) == 0
    assert len(Path(environ["RUNS"]).read_text().splitlines()) == 2
    store = Store(Path(plan.cache_dir))
    assert store.find(plan.step(STEP).key).manifest is not None
    assert store.keys() == [plan.step(STEP).key]
    assert list((store.root / "quarantine").iterdir()) == []
    assert list(read_only_leases.iterdir()) == []
