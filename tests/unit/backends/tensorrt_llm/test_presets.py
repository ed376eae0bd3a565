"""A preset is a set of documented flags, less what the release does not surely have and what would not help."""

from __future__ import annotations

import pytest
from support.trtllm_recipes import MODELS

from trtx.backends.tensorrt_llm.presets import ENGINE, PYTORCH, Case, expand_preset
from trtx.backends.tensorrt_llm.releases import Release, known_releases
from trtx.backends.tensorrt_llm.shape import read_shape

LLAMA = read_shape(MODELS["llama-70b"])


def case(
    algorithm: str = "fp8", sm: int = 90, tensor: int = 4, model: str = "llama-70b", kv_cache: str = "fp8"
) -> Case:
    return Case(algorithm, kv_cache, sm, tensor, read_shape(MODELS[model]))


@pytest.mark.parametrize("release", known_releases())
@pytest.mark.parametrize("preset", ENGINE)
def test_every_flag_of_a_preset_is_one_that_the_release_surely_takes(preset: str, release: str) -> None:
    made = Release.load(release)
    tool = made.tool("trtllm-build")
    flags = expand_preset(preset, made, "engine", case())  # type: ignore[arg-type]
    assert flags
    for name, value in flags.items():
        option = tool.option(name)
        assert option is not None
        assert option.is_certain
        assert option.takes(value) not in (None, "unknown")


@pytest.mark.parametrize("preset", PYTORCH)
def test_keys_of_a_preset_are_keys_of_the_options_file(preset: str) -> None:
    made = Release.load("1.3.0rc3")
    keys = expand_preset(preset, made, "pytorch", case())  # type: ignore[arg-type]
    assert set(keys) == {flag.name for flag in PYTORCH[preset]}  # type: ignore[index]
    assert set(keys) <= set(made.schema_fields("TorchLlmArgs"))


def test_what_is_not_established_for_a_release_is_left_out() -> None:
    assert expand_preset("throughput", Release.load("1.2.1"), "pytorch", case()) == {}


def test_flags_depend_on_format_gpu_model_and_ranks() -> None:
    release = Release.load("1.2.1")
    assert "reduce_fusion" in expand_preset("throughput", release, "engine", case())
    assert "reduce_fusion" not in expand_preset("throughput", release, "engine", case(tensor=1))
    assert "reduce_fusion" not in expand_preset("throughput", release, "engine", case(model="mixtral"))
    assert "gemm_plugin" in expand_preset("throughput", release, "engine", case("none"))
    assert "gemm_plugin" not in expand_preset("throughput", release, "engine", case("fp8"))
    assert "low_latency_gemm_plugin" in expand_preset("latency", release, "engine", case())
    assert "low_latency_gemm_plugin" not in expand_preset("latency", release, "engine", case(sm=100))
    assert "use_paged_context_fmha" in expand_preset("long-context", release, "engine", case())
    assert "use_paged_context_fmha" not in expand_preset("long-context", release, "engine", case(kv_cache="int8"))
