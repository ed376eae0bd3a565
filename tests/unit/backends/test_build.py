from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trtx.backends.inductor import build as module
from trtx.backends.inductor.build import build, check_constants, compile_code, compiler_version, find_compiler
from trtx.backends.inductor.choices import ProgramChoices
from trtx.backends.inductor.compile import export_program, make_options, write_compiler, write_package
from trtx.backends.inductor.process import Child, clean_environ, run_children
from trtx.backends.inductor.spec import CompileFacts, EngineSpec, find_isa, make_card
from trtx.errors import EnvironmentProblem, StepFailed, UsageProblem
from trtx.hardware.gpus import ISAS
from trtx.kernels.ops import COLLECTIVES
from trtx.models.layout import make_layout


def make_spec(**changes: Any) -> EngineSpec:
    model = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }
    facts: dict[str, Any] = {
        "model": model,
        "quantization": {},
        "dtype": "float32",
        "limits": {"max_batch_size": 4, "max_num_tokens": 32, "max_seq_len": 64},
        "tokens_per_block": 16,
        "rank": {},
        "arch": "x86-64-v3",
    }
    return EngineSpec.model_validate({**facts, **changes})


def refuse(spec: EngineSpec, tmp_path: Path) -> None:
    build(spec, tmp_path, tmp_path, lambda _: None)


def test_the_step_that_builds_imports_no_torch_itself() -> None:
    script = "import sys, trtx.stages.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem) as caught:
        refuse(make_spec(), tmp_path)
    assert "apt-get install g++" in caught.value.fix


def test_a_compiler_that_does_not_work_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    with pytest.raises(EnvironmentProblem, match="does not work"):
        compiler_version(broken)


def test_the_version_of_the_compiler_is_its_own_word() -> None:
    assert compiler_version(find_compiler())[0].isdigit()


def test_an_architecture_of_another_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="cannot compile for sm_80"):
        refuse(make_spec(arch="sm_80"), tmp_path)


def test_pipelines_are_refused_and_so_is_a_program_for_one_rank_of_several(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="runs no pipelines"):
        refuse(make_spec(rank={"tensor": 1, "pipeline": 2, "rank": 0}), tmp_path)
    with pytest.raises(UsageProblem, match="for rank 1 alone"):
        refuse(make_spec(rank={"tensor": 2, "pipeline": 1, "rank": 1}), tmp_path)


def test_the_programs_of_one_rank_have_no_operator_that_meets_others() -> None:
    for tensor, expected in ((1, set()), (2, {"all_gather", "all_reduce"})):
        model = {**make_spec().model.model_dump(), "tie_word_embeddings": False}
        exported = export_program(make_spec(model=model, rank={"tensor": tensor}))
        words = {word for node in exported.graph.nodes for word in str(node.target).split(".")}
        assert words & COLLECTIVES.keys() == expected


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "_make_child", lambda job: Child("trtx.no_such_module", (), Path(job.work, "log"), {}))
    with pytest.raises(StepFailed, match=r"compiling the .* program failed") as caught:
        compile_code(make_spec(), find_compiler(), tmp_path / "engine", tmp_path, said.append)
    assert "No module named trtx.no_such_module" in caught.value.why
    assert said


def test_a_weight_that_was_compiled_in_fails_the_build() -> None:
    spec = make_spec()
    names = tuple(t.name for t in make_layout(spec.model, spec.quantization, spec.dtype).tensors)
    choices = ProgramChoices(vector_isa="AVX2", kernels=1, vector_kernels=1, settings={})
    whole = CompileFacts(constants=names, choices=choices)
    check_constants(spec, {"step": whole})
    with pytest.raises(StepFailed) as caught:
        check_constants(spec, {"step": CompileFacts(constants=names[:-1], choices=choices)})
    assert caught.value.why == f"{names[-1]} is compiled in"


def test_the_card_says_what_a_machine_must_have_and_what_is_simulated() -> None:
    card = make_card(make_spec(quantization={"algorithm": "fp8", "kv_cache": "fp8"}), {}, {"torch": "2.13.0"}, "AVX2")
    assert set(card.compiled_for.cpu_flags) == ISAS["x86-64-v3"].flags
    assert card.compiled_for.simulated
    assert card.kv_cache.dtype == "float8_e4m3fn"
    assert not make_card(make_spec(), {}, {}, "").compiled_for.simulated


@pytest.mark.parametrize("arch", ISAS)
def test_code_is_for_the_target_and_not_for_the_building_machine(arch: str) -> None:
    options = make_options(find_isa(arch), "step", Path("g++"))
    assert (options["cpp.march"], options["cpp.simdlen"]) == (ISAS[arch].march, ISAS[arch].simdlen)
    assert options["cpp.dynamic_threads"]
    assert options["always_keep_tensor_constants"]


def test_the_compiler_leaves_no_path_of_this_machine(tmp_path: Path) -> None:
    source = tmp_path / "file.cpp"
    source.write_text('extern "C" const char* where() { return __FILE__; }\n')
    compiler = write_compiler(find_compiler(), tmp_path)
    library = tmp_path / "file.so"
    subprocess.run([compiler, "-g", "-shared", "-fPIC", source, "-o", library], check=True)
    assert str(tmp_path).encode() not in library.read_bytes()


def test_a_package_holds_the_library_and_no_sources_in_one_form(tmp_path: Path) -> None:
    files = {
        "raw/data/aotinductor/model/step.wrapper.so": b"library",
        "raw/data/aotinductor/model/step.wrapper.cpp": b"// /home/someone",
        "raw/data/aotinductor/model/step.wrapper_metadata.json": b"{}",
        "raw/archive_format": b"pt2",
        "raw/.data/serialization_id": b"random",
    }
    packages = []
    for turn, names in enumerate((list(files), list(reversed(files)))):
        raw, packed = tmp_path / f"raw{turn}.pt2", tmp_path / str(turn) / "step.pt2"
        packed.parent.mkdir()
        with zipfile.ZipFile(raw, "w") as archive:
            for name in names:
                archive.writestr(name, files[name])
        write_package(raw, packed)
        named = tmp_path / str(turn) / "named.pt2"
        write_package(raw, named, keep_names=True)
        with zipfile.ZipFile(named) as archive:
            assert archive.read("named/data/aotinductor/model/step.wrapper.cpp") == b""
        packages.append(packed.read_bytes())
        with zipfile.ZipFile(packed) as archive:
            assert sorted(archive.namelist()) == [
                "step/archive_format",
                "step/data/aotinductor/model/step.wrapper.so",
                "step/data/aotinductor/model/step.wrapper_metadata.json",
            ]
    assert packages[0] == packages[1]


def test_variables_that_steer_the_compiler_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1")
    monkeypatch.setenv("AOT_INDUCTOR_DEBUG_COMPILE", "1")
    found = clean_environ({"TMPDIR": "here"})
    assert not [name for name in found if name.startswith(("TORCH", "AOT"))]
    assert (found["TMPDIR"], found["PATH"], found["PYTHONHASHSEED"]) == ("here", os.environ["PATH"], "0")


def test_the_first_child_that_fails_stops_the_others(tmp_path: Path) -> None:
    server = Child("http.server", ("0", "--bind", "127.0.0.1"), tmp_path / "server.log", {})
    failing = Child("trtx.no_such_module", (), tmp_path / "failing.log", {})
    ended = run_children([server, failing], tmp_path)
    assert [end.code for end in ended] == [-15, 1]
    assert "No module named" in ended[1].tail[-1]
