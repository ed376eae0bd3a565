"""A step runs only with what it was planned with: its key says so."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from support.plans import plan_of
from support.trtllm_specs import make_spec

from trtx.backends.tensorrt_llm.releases import Release
from trtx.errors import EnvironmentProblem
from trtx.files import write_text
from trtx.hardware.versions import installed_version
from trtx.stages import worker
from trtx.stages.job import JOB_NAME, attempt_folder, dump_file, read_result
from trtx.stages.params import PARAMS
from trtx.stages.params_trtllm import TrtllmConvertParams
from trtx.stages.ranks import Rank, read_rank
from trtx.stages.toolchain import check_toolchain, find_version


def test_a_step_planned_with_another_version_does_not_begin(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, versions={"torch": "1.0"})
    step = next(step for step in plan.steps if "torch" in step.factors["toolchain"])
    write_text(tmp_path / JOB_NAME, dump_file(step.job(plan)))
    assert worker.main([str(tmp_path / JOB_NAME)]) == EnvironmentProblem.exit_code
    result = read_result(attempt_folder(tmp_path, 1))
    assert result is not None
    assert result.failure is not None
    here = installed_version("torch")
    assert result.failure.what == f"{step.id} was planned with other versions: torch 1.0, here is {here}"
    assert "runners.NAME.python" in result.failure.fix


def test_everything_that_can_stand_in_a_toolchain_is_compared() -> None:
    real = {name: find_version(name) for name in ("python", "c++", "kernels", "torch", "no-such-distribution")}
    assert real["python"] == platform.python_version()
    assert real["no-such-distribution"] == "absent"
    check_toolchain("build/cpu/fp32", {"toolchain": real})
    for name in real:
        with pytest.raises(EnvironmentProblem, match=f"versions: {name.replace('+', '.')} 0, here is "):
            check_toolchain("build/cpu/fp32", {"toolchain": {**real, name: "0"}})


def test_a_step_of_tensorrt_llm_is_not_run_by_a_trtx_with_other_tables() -> None:
    params = TrtllmConvertParams(spec=make_spec("1.2.1").checkpoint).model_dump(mode="json")
    factors = {"stage": "convert", "params": params, "toolchain": {"tables": Release.load("1.2.1").digest}}
    check_toolchain("convert/h100/bf16", factors)
    with pytest.raises(EnvironmentProblem, match="other tables of its release \\(000000000000, here are"):
        check_toolchain("convert/h100/bf16", {**factors, "toolchain": {"tables": "0" * 64}})


def test_another_version_of_a_stage_is_not_run() -> None:
    code = PARAMS["build"].code_version
    check_toolchain("build/cpu/fp32", {"stage": "build", "code": code})
    with pytest.raises(EnvironmentProblem, match=f"version 0 of the stage build, here is version {code}"):
        check_toolchain("build/cpu/fp32", {"stage": "build", "code": 0})


def test_a_rank_is_read_from_what_a_runner_sets() -> None:
    assert read_rank({}) == Rank(0, 1)
    assert read_rank({"TRTX_RANK": "3", "TRTX_RANKS": "4"}) == Rank(3, 4)


@pytest.mark.parametrize("environ", [{"TRTX_RANK": "x"}, {"TRTX_RANK": "4", "TRTX_RANKS": "4"}, {"TRTX_RANK": "1"}])
def test_what_is_no_rank_is_refused(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    write_text(tmp_path / JOB_NAME, dump_file(plan.steps[0].job(plan)))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert worker.main([str(tmp_path / JOB_NAME)]) == 2
    assert not (tmp_path / "attempts").exists()


def test_several_processes_need_the_number_of_their_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    write_text(tmp_path / JOB_NAME, dump_file(plan.steps[0].job(plan)))
    monkeypatch.setenv("TRTX_RANK", "1")
    monkeypatch.setenv("TRTX_RANKS", "2")
    monkeypatch.delenv("TRTX_ATTEMPT", raising=False)
    assert worker.main([str(tmp_path / JOB_NAME)]) == 2
    assert "set TRTX_ATTEMPT" in capsys.readouterr().err
