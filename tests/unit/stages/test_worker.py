"""The worker runs one job file, by hand or from a runner, and every end of it leaves a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.plans import plan_of
from support.steps import corrupt, install_stage, write_output

from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem
from trtx.files import write_text
from trtx.plan.steps import Plan
from trtx.stages import worker
from trtx.stages.base import STAGES, StepContext
from trtx.stages.job import JOB_NAME, attempt_folder, dump_file, read_result
from trtx.stages.params import PARAMS


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def write_job(tmp_path: Path, plan: Plan, step_id: str) -> Path:
    path = tmp_path / step_id.replace("/", ".") / JOB_NAME
    write_text(path, dump_file(plan.step(step_id).job(plan)))
    return path


@pytest.fixture(autouse=True)
def _keep_signals() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_job_run_by_hand_publishes_its_entry_and_numbers_its_attempts(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_stage(monkeypatch)
    job = write_job(tmp_path, plan, "download/model")
    assert worker.main([str(job)]) == 0
    assert worker.main([str(job)]) == 0
    first, second = (read_result(attempt_folder(job.parent, number)) for number in (1, 2))
    assert first is not None and first.state == "published"
    assert second is not None and second.state == "adopted"
    manifest = Store(Path(plan.cache_dir)).find(first.key).manifest
    assert manifest is not None
    assert manifest.factors == plan.step("download/model").factors
    assert manifest.provenance["recipe"] == "tiny"
    assert manifest.summary == {"stage": "download"}


def test_an_input_that_is_absent_is_named(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_stage(monkeypatch)
    job = write_job(tmp_path, plan, "calibrate/fp32")
    assert worker.main([str(job)]) == 8
    assert "cannot use its input 'model' (download/model)" in capsys.readouterr().err


def test_a_corrupt_input_is_not_used(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_stage(monkeypatch)
    for step_id in ("download/model", "download/docs"):
        assert worker.main([str(write_job(tmp_path, plan, step_id))]) == 0
    corrupt(Store(Path(plan.cache_dir)).output(plan.step("download/docs").key) / "output.txt")
    assert worker.main([str(write_job(tmp_path, plan, "calibrate/fp32"))]) == 8
    assert "SHA-256" in capsys.readouterr().err


def test_a_stage_sees_its_inputs_by_name_and_writes_only_into_staging(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StepContext] = []

    def look(context: StepContext) -> None:
        seen.append(context)
        context.progress(1, 3, "rows")
        write_output(context)

    install_stage(monkeypatch, {"calibrate": look})
    for step_id in ("download/model", "download/docs", "calibrate/fp32"):
        assert worker.main([str(write_job(tmp_path, plan, step_id))]) == 0
    assert set(seen[0].inputs) == {"model", "data"}
    assert seen[0].keys["model"] == plan.step("download/model").key
    assert seen[0].output.parent.parent == Path(plan.cache_dir) / "tmp"
    assert not seen[0].output.exists()
    assert seen[0].progress_file is not None and '"done": 1' in seen[0].progress_file.read_text()


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "trtx.job/v0"}', "not json"])
def test_a_file_that_is_no_job_is_one_message(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / JOB_NAME
    job.write_text(text)
    assert worker.main([str(job)]) == 2
    assert "is not a job of this version" in capsys.readouterr().err


def test_a_missing_job_and_missing_arguments_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worker.main([str(tmp_path / "absent.json")]) == 2
    assert worker.main([]) == 2
    assert "usage:" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_one_message_and_the_entry_stays(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, _text: str) -> None:
        raise EnvironmentProblem(f"cannot write {path}", why="the disk is full")

    install_stage(monkeypatch)
    job = write_job(tmp_path, plan, "download/model")
    monkeypatch.setattr(worker, "write_text", fail)
    assert worker.main([str(job)]) == 6
    assert "the disk is full" in capsys.readouterr().err
    assert Store(Path(plan.cache_dir)).find(plan.step("download/model").key).manifest is not None


def test_every_stage_has_parameters_and_a_module() -> None:
    assert set(PARAMS) == set(STAGES)
    for name in STAGES:
        assert callable(worker.load_stage(name).run)


SLOW_STAGE = """
import os, sys, time
from types import SimpleNamespace
from trtx.stages import worker

def run(params, context):
    (context.output / "half").write_text("half")
    context.progress(1, 2, "halves")
    time.sleep(60)

worker.load_stage = lambda name: SimpleNamespace(run=run)
sys.exit(worker.main(sys.argv[1:]))
"""


@pytest.fixture
def slow_worker(tmp_path: Path, plan: Plan) -> Any:
    """A worker in a process of its own, half-way through its stage."""
    job = write_job(tmp_path, plan, "download/model")
    environment = {**os.environ, "TRTX_ATTEMPT": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW_STAGE, str(job)], env=environment)
    deadline = time.monotonic() + 60
    while not (attempt_folder(job.parent, 1) / "progress.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    yield process, job
    process.kill()
    process.wait()


def test_a_worker_told_to_stop_says_so_and_leaves_nothing_behind(slow_worker: Any, plan: Plan) -> None:
    process, job = slow_worker
    process.terminate()
    assert process.wait(30) == 130
    result = read_result(attempt_folder(job.parent, 1))
    assert result is not None and result.failure is not None
    assert result.failure.kind == "Interrupted"
    assert list((Path(plan.cache_dir) / "tmp").iterdir()) == []


def test_a_killed_worker_leaves_no_result_and_no_entry(slow_worker: Any, plan: Plan) -> None:
    process, job = slow_worker
    process.kill()
    process.wait(30)
    assert read_result(attempt_folder(job.parent, 1)) is None
    store = Store(Path(plan.cache_dir))
    assert store.find(plan.step("download/model").key).manifest is None
    assert store.clean_staging() == 1


def test_a_second_signal_does_not_stop_the_end_of_a_step_that_was_told_to_stop() -> None:
    program = (
        "import os, signal, time\n"
        "from trtx.stages import worker\n"
        "signal.signal(signal.SIGTERM, worker._interrupt)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)\n"
        "except KeyboardInterrupt:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('result written')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "result written\n")
