"""Lines that tools of TensorRT-LLM end with, and what they mean."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from trtx.backends.tensorrt_llm.causes import find_cause
from trtx.errors import EnvironmentProblem
from trtx.processes import stream_process

LINES = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "too little free memory"),
    ("[TRT] [E] [virtualMemoryBuffer.cpp] Requested size was 98784247808 bytes.", "too little free memory"),
    (
        "Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match",
        "version of T",
    ),
    ("The engine plan file is not compatible with this version of TensorRT, expecting library 9.2", "version of T"),
    ("The engine plan file is generated on an incompatible device, expecting compute 9.0", "compute capability"),
    ("CUDA driver version is insufficient for CUDA runtime version", "driver is too old"),
    ("RuntimeError: No CUDA GPUs are available", "sees no GPU"),
    ("trtllm-build: error: unrecognized arguments: --paged_kv_cache", "another command line"),
    ("Error: No such option: --report_json", "another command line"),
    ("ModuleNotFoundError: No module named 'modelopt'", "no ModelOpt"),
    ("PMIX ERROR: ERROR in file gds_ds12_lock_pthread.c", "could not find one another"),
    ("AssertionError: world_size 4 must equal to MPI size: mismatch", "number of ranks"),
    ("OSError: [Errno 28] No space left on device", "disk is full"),
]


@pytest.mark.parametrize(("line", "why"), LINES)
def test_a_known_line_has_its_meaning_and_a_remedy(line: str, why: str) -> None:
    cause = find_cause(["[I] before", line, "[I] after"], 1)
    assert cause is not None
    assert why in cause.why
    assert cause.fix


def test_a_process_that_was_killed_ran_out_of_memory_most_often() -> None:
    for status in (-signal.SIGKILL, 137):
        cause = find_cause(["[I] working"], status)
        assert cause is not None
        assert "killed" in cause.why


def test_lines_that_mean_nothing_are_given_no_meaning() -> None:
    assert find_cause(["[I] world_size: 4", "ValueError: something else"], 1) is None


def test_lines_arrive_while_the_process_runs(tmp_path: Path) -> None:
    lines: list[tuple[str, float]] = []
    code = "import sys, time; print('one', flush=True); time.sleep(0.5); print('two', file=sys.stderr); sys.exit(3)"
    status = stream_process(
        [sys.executable, "-c", code],
        folder=tmp_path,
        environment=os.environ,
        on_line=lambda line: lines.append((line, time.monotonic())),
    )
    assert (status, [line for line, _ in lines]) == (3, ["one", "two"])
    assert lines[1][1] - lines[0][1] > 0.3


def test_a_process_ends_with_the_step_that_started_it(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        stream_process([sys.executable, "-c", code], folder=tmp_path, environment=os.environ, on_line=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_is_not_there_is_an_environment_problem(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot start /no/such/program"):
        stream_process(["/no/such/program"], folder=tmp_path, environment={}, on_line=print)
