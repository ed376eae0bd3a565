"""What the library of a GPU is built with, as far as a machine without one can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.backends.test_build import make_spec

from trtx.backends.inductor.spec import EngineSpec, make_card
from trtx.backends.inductor.tune import list_shapes, list_tokens
from trtx.errors import EnvironmentProblem, StepFailed
from trtx.hardware.support import COMPILED, compile_problem
from trtx.kernels import build_cuda
from trtx.models.formats import QuantFormat
from trtx.quant.linear_cuda import CUDA_LINEARS, FORMATS


def round_tokens(tokens: int) -> int:
    """The rule of kernels/cuda/products.cpp."""
    if tokens <= 8:
        return 8
    if tokens <= 128:
        return (tokens + 15) // 16 * 16
    size = 128
    while tokens > 2 * size:
        size *= 2
    return size * 3 // 2 if tokens <= size * 3 // 2 else 2 * size


def test_every_number_of_tokens_finds_a_record_that_was_measured() -> None:
    measured = list(list_tokens(8192))
    assert {round_tokens(tokens) for tokens in range(1, 8193)} == set(measured)


def test_products_of_every_matrix_are_measured_once() -> None:
    spec = make_spec(arch="sm_90", dtype="bfloat16")
    fp8 = spec.model_copy(update={"quantization": QuantFormat(algorithm="fp8", kv_cache="auto", exclude=("lm_head",))})
    assert {kind for kind, _, _ in list_shapes(spec)} == {"bf16", "bf16-gated"}
    # The head stays unquantized.
    kinds = [kind for kind, _, _ in list_shapes(fp8)]
    assert sorted(kinds)[0] == "bf16"
    assert kinds.count("e4m3-gated") == 1
    assert len(kinds) <= 6


def test_gated_products_are_measured_as_far_as_there_is_a_kernel_for_them() -> None:
    spec = make_spec(arch="sm_90", dtype="bfloat16")
    most = {kind: tokens for (kind, _, _), tokens in list_shapes(spec).items()}
    assert most["bf16-gated"] == min(128, spec.limits.max_num_tokens)


def test_the_catalogue_and_the_kernels_have_the_same_formats() -> None:
    assert all(set(formats) == set(FORMATS) == set(CUDA_LINEARS) for formats in COMPILED.values())
    assert compile_problem("x86-64-v3", "mxfp4") is None
    assert compile_problem("sm_90", "fp8") is None
    assert compile_problem("sm_80", "none") == (
        "this version's own GPU kernels are for sm_90",
        "use another gpu, or a CPU",
    )


def test_the_card_of_a_gpu_names_its_architecture_and_no_processor() -> None:
    spec: EngineSpec = make_spec(arch="sm_90", dtype="bfloat16")
    target = make_card(spec, {}, {"torch": "2.13.0"}, "").compiled_for
    assert (target.device, target.arch, target.cpu_flags, target.simulated) == ("cuda", "sm_90", (), False)


def test_no_cuda_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="no CUDA compiler"):
        build_cuda.find_nvcc()


def test_a_torch_without_cublas_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cuda.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StepFailed, match="cannot be built"):
        build_cuda.find_cublas()
