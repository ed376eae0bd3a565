"""What the compiler was told and what it chose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from trtx.backends.inductor.choices import Choices, ProgramChoices, Recorder, read_settings
from trtx.backends.inductor.compile import make_options
from trtx.hardware.gpus import ISAS


@dataclass(frozen=True)
class Candidate:
    """What inductor's tuner compares, as far as its name."""

    name: str


@pytest.fixture
def options(tmp_path: Path) -> dict[str, object]:
    return make_options(ISAS["x86-64-v3"], "step", tmp_path / "g++")


def test_the_settings_are_those_that_differ_from_torchs_own_and_name_no_folder(
    options: dict[str, object], tmp_path: Path
) -> None:
    settings = read_settings(options)
    assert settings["cpp.simdlen"] == 256
    assert settings["cpp.march"] == "x86-64-v3"
    assert settings["cpp.threads"] == 8
    assert settings["max_autotune"] is False
    assert len(settings) < 20
    assert str(tmp_path) not in json.dumps(settings)
    assert settings == read_settings(options)


def test_the_fastest_candidate_of_every_tuned_operation_is_recorded(options: dict[str, object]) -> None:
    recorder = Recorder(options)
    slow, fast = Candidate("mm"), Candidate("cpp_CppMicroGemmFP32Vec_3")
    recorder.note({slow: 2.0, fast: 1.0}, "addmm", [], [slow, fast])
    recorder.note({}, "mm", [], [])
    recorder.note({slow: 1.0}, "mm", [], [slow])
    assert recorder.read("AVX2").tuned == {"000 addmm": "cpp_CppMicroGemmFP32Vec_3", "001 mm": "mm"}


def test_a_summary_has_the_settings_once_and_the_rest_by_program() -> None:
    one = ProgramChoices(
        vector_isa="AVX2", kernels=3, vector_kernels=2, settings={"b": 1, "a": True}, tuned={"0 mm": "x"}
    )
    other = ProgramChoices(vector_isa="AVX2", kernels=4, vector_kernels=4, settings={"a": True, "b": 1})
    summary = Choices(programs={"decode": one, "prefill": other}).summarize()
    assert summary == {
        "settings": {"a": True, "b": 1},
        "decode": {"vector_isa": "AVX2", "kernels": 3, "vector_kernels": 2, "tuned 0 mm": "x"},
        "prefill": {"vector_isa": "AVX2", "kernels": 4, "vector_kernels": 4},
    }
