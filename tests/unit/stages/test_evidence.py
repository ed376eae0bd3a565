"""A failed step leaves what is needed to look at it and to run it again, without secrets and within bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.jobs import start_worker, write_job
from support.plans import plan_of

from trtx.cache import failures
from trtx.cache.failures import list_failures, open_failure, trim_failures
from trtx.cache.store import Store
from trtx.plan.steps import Plan
from trtx.stages.evidence import MAX_PARTIAL_BYTES
from trtx.stages.job import attempt_folder, read_result

STEP = "calibrate/fp32"
FAIL = (
    "(context.output / 'half.txt').write_text('half'); raise ValueError('wrong shape near ' + os.environ['HF_TOKEN'])"
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def run_worker(job: Path, body: str, environ: dict[str, str] | None = None) -> tuple[int, str]:
    with start_worker(job, body, environ) as worker:
        output, _ = worker.communicate(timeout=60)
        return worker.returncode, output


@pytest.fixture
def environ() -> dict[str, str]:
    secrets = {"HF_TOKEN": "hf_verysecret", "GITHUB_PAT": "hunter2-a", "SIGNING_PEM": "-----\nhunter2-b\n-----"}
    return {**os.environ, **secrets, "OMP_NUM_THREADS": "2", "TRTX_ATTEMPT": "1"}


@pytest.fixture
def failed(tmp_path: Path, plan: Plan, environ: dict[str, str]) -> Path:
    """The evidence of a failed step with two inputs."""
    for step_id in ("download/model", "download/docs"):
        assert run_worker(write_job(tmp_path, plan, step_id), "pass", environ)[0] == 0
    job = write_job(tmp_path, plan, STEP)
    log = attempt_folder(job.parent, 1) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("x" * 100_000 + "using hf_verysecret, hunter2-a, hunter2-b and postgres://me:hunter2-c@db/x\n")
    code, output = run_worker(job, FAIL, environ)
    assert code == 1
    [folder] = list_failures(Path(plan.cache_dir))
    assert f"kept for inspection: {folder}" in output
    result = read_result(attempt_folder(job.parent, 1))
    assert result is not None and result.evidence == str(folder)
    return folder


def test_a_failure_keeps_how_it_failed_its_log_and_its_small_output(failed: Path, plan: Plan) -> None:
    kept = json.loads((failed / "result.json").read_text())
    assert kept["key"] == plan.step(STEP).key
    assert "ValueError: wrong shape" in kept["failure"]["what"]
    assert "Traceback" in (failed / "error.txt").read_text()
    assert 60_000 < len((failed / "log.txt").read_text()) < 70_000
    assert (failed / "partial/output/half.txt").read_text() == "half"
    assert Store(Path(plan.cache_dir)).find(plan.step(STEP).key).manifest is None


def test_no_secret_is_written_down(failed: Path) -> None:
    for path in failed.rglob("*"):
        assert not path.is_file() or "hf_verysecret" not in path.read_text(), path
        assert not path.is_file() or "hunter2" not in path.read_text(), path
    assert "[HF_TOKEN]" in (failed / "log.txt").read_text()
    assert "postgres://[credentials]@db/x" in (failed / "log.txt").read_text()
    assert "${HF_TOKEN+" in (failed / "repro.sh").read_text()


@pytest.mark.parametrize("name", ["scratch", "a & b|c \u00fc"])
def test_repro_runs_the_same_step_again_in_a_scratch_folder(
    failed: Path, plan: Plan, tmp_path: Path, environ: dict[str, str], name: str
) -> None:
    # The real stage meets an input that holds no model: what counts is that it ran, with the inputs of the cache.
    done = subprocess.run(
        [str(failed / "repro.sh"), name], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    scratch = tmp_path / name
    result = read_result(attempt_folder(scratch, 1))
    assert result is not None, done.stderr
    assert result.key == plan.step(STEP).key
    assert result.failure is not None and "cannot use its input" not in result.failure.what
    assert result.evidence is not None and result.evidence.startswith(str(scratch / "cache"))
    assert list_failures(Path(plan.cache_dir)) == [failed]
    environment = (Path(result.evidence) / "repro.sh").read_text()
    assert "OMP_NUM_THREADS=2" in environment and "HF_TOKEN" in environment


def test_repro_repeats_a_failure_of_a_real_stage(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"model.source": "file:///nonexistent/model"})
    job = write_job(tmp_path, plan, "download/model")
    with subprocess.Popen(
        [sys.executable, "-m", "trtx.stages.worker", str(job)], stderr=subprocess.PIPE, text=True
    ) as worker:
        _, first = worker.communicate(timeout=60)
    [folder] = list_failures(Path(plan.cache_dir))
    again = subprocess.run([str(folder / "repro.sh")], capture_output=True, text=True, check=False)
    error = next(line for line in first.splitlines() if line.startswith("error:"))
    assert error in again.stderr
    assert again.returncode == worker.returncode


def test_a_large_partial_output_is_dropped(tmp_path: Path, plan: Plan) -> None:
    body = f"(context.output / 'big').write_bytes(bytes({MAX_PARTIAL_BYTES + 1})); raise ValueError"
    assert run_worker(write_job(tmp_path, plan, "download/model"), body)[0] == 1
    [folder] = list_failures(Path(plan.cache_dir))
    assert not (folder / "partial").exists()
    assert list((Path(plan.cache_dir) / "tmp").iterdir()) == []


def test_a_stopped_step_is_no_failure(tmp_path: Path, plan: Plan) -> None:
    assert run_worker(write_job(tmp_path, plan, "download/model"), "raise KeyboardInterrupt")[0] == 130
    assert list_failures(Path(plan.cache_dir)) == []


def test_a_failure_that_cannot_be_kept_stays_the_same_failure(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "cache").mkdir()
    Store(Path(plan.cache_dir)).prepare()
    folder = Path(plan.cache_dir) / "failures"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    try:
        code, output = run_worker(write_job(tmp_path, plan, "download/model"), "raise ValueError('the cause')")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert code == 1
    assert "error: ValueError: the cause" in output
    assert "kept for inspection" not in output


def make_failures(root: Path, count: int, size: int) -> list[Path]:
    made = []
    for number in range(count):
        folder = open_failure(root, f"{number:064x}")
        renamed = folder.with_name(f"{number:016x}-20260101T{number:06d}Z-{number:08x}")
        folder.rename(renamed)
        (renamed / "log.txt").write_bytes(bytes(size))
        made.append(renamed)
    return made


def test_the_oldest_failures_are_dropped_by_number_and_by_size(tmp_path: Path) -> None:
    made = make_failures(tmp_path, 6, 10)
    assert trim_failures(tmp_path, keep=4) == made[:2]
    assert trim_failures(tmp_path, keep=4, max_bytes=25) == made[2:4]
    assert list_failures(tmp_path) == made[4:]
    assert failures.folder_bytes(tmp_path / "absent") == 0
