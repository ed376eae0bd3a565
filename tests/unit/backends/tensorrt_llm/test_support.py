"""Which formats run where: by GPU, by model, and by the code's own rules; every answer names its source."""

from __future__ import annotations

from typing import get_args

import pytest

from trtx.backends.tensorrt_llm.hard_rules import RULES, hard_rules
from trtx.backends.tensorrt_llm.releases import Flow, Release, known_releases
from trtx.backends.tensorrt_llm.support import (
    FORMATS,
    MODEL_ROWS,
    check_gpu,
    check_model,
    model_precisions,
    precisions,
)
from trtx.backends.tensorrt_llm.tables import read_table
from trtx.recipe.schema import AS_STORED, Algorithm


def test_every_algorithm_of_a_recipe_has_its_names() -> None:
    # What a checkpoint has is known when the model is.
    assert set(FORMATS) == set(get_args(Algorithm)) - {AS_STORED}
    known = Release.load("1.3.0rc3").quant_algos
    assert {form.quant_algo for form in FORMATS.values() if form.quant_algo} <= set(known)


def test_names_of_formats_and_models_are_those_of_the_documents() -> None:
    table = read_table("support")
    engine, pytorch = table["tensorrt_backend"], table["pytorch_backend"]
    for form in FORMATS.values():
        assert form.engine is None or form.engine in engine["by_sm"]["100"]
        assert form.model is None or any(form.model in row for row in engine["models_by_precision"]["map"].values())
        assert form.pytorch is None or any(form.pytorch in row for row in pytorch["by_gpu"].values())
    for rows, more in MODEL_ROWS.values():
        assert set(rows) <= set(engine["models_by_precision"]["map"])
        assert set(more) <= set(pytorch["by_model"])


@pytest.mark.parametrize(
    ("version", "flow", "sm", "algorithm", "supported", "confidence"),
    [
        ("1.3.0rc3", "engine", 90, "fp8", True, "exact"),
        ("0.16.0", "engine", 89, "fp8", True, "interval"),
        ("0.16.0", "engine", 80, "fp8", False, "exact"),
        ("0.16.0", "engine", 80, "int4_awq", True, "interval"),
        ("0.16.0", "engine", 80, "w4a8_awq", False, "exact"),
        ("0.16.0", "engine", 100, "none", False, "exact"),
        ("0.21.0", "engine", 100, "nvfp4", True, "unknown"),
        ("0.16.0", "engine", 90, "nvfp4", False, "exact"),
        ("1.2.1", "pytorch", 90, "nvfp4", False, "exact"),
        ("1.2.1", "pytorch", 90, "int8_sq", False, "exact"),
        ("1.3.0rc3", "pytorch", 100, "fp8_dynamic", False, "interval"),
        ("1.3.0rc3", "pytorch", 120, "int4_awq", False, "interval"),
        ("1.3.0rc3", "pytorch", 80, "mxfp8", False, "exact"),
        ("1.2.1", "engine", 75, "none", None, "unknown"),
    ],
)
def test_formats_by_gpu(
    version: str, flow: Flow, sm: int, algorithm: str, supported: bool | None, confidence: str
) -> None:
    verdict = check_gpu(Release.load(version), flow, sm, algorithm)
    assert (verdict.supported, verdict.confidence) == (supported, confidence)
    assert verdict.why
    assert verdict.source


def test_a_gpu_that_is_newer_than_the_release_s_cuda_is_refused_with_the_versions() -> None:
    why = check_gpu(Release.load("0.16.0"), "engine", 100, "fp8").why
    assert why == "TensorRT-LLM 0.16.0 has CUDA 12.6.3, and sm_100 needs CUDA 12.8"
    assert precisions(Release.load("0.16.0"), "engine", 100) == {}
    assert check_gpu(Release.load("0.17.0"), "engine", 103, "fp8").supported is False


def test_formats_by_model() -> None:
    release = Release.load("1.3.0rc3")
    assert check_model(release, "engine", "LlamaForCausalLM", "fp8").supported is True
    assert check_model(release, "engine", "MixtralForCausalLM", "int4_awq").supported is False
    assert check_model(release, "engine", "Unlisted", "fp8").supported is None
    assert check_model(release, "pytorch", "MistralForCausalLM", "nvfp4").supported is False
    assert check_model(release, "pytorch", "LlamaForCausalLM", "fp8_dynamic").supported is True
    assert model_precisions(release, "engine", "Qwen3ForCausalLM") is None


def test_every_rule_says_when_what_and_where() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    build = {option.name for tool in Release.load("1.3.0rc3").tools.values() for option in tool.options}
    for rule in RULES:
        assert rule.condition
        assert rule.outcome
        assert rule.source.startswith(("tensorrt_llm/", "docs/"))
        assert set(rule.options) <= build, rule.id


@pytest.mark.parametrize("version", known_releases())
def test_rules_are_sure_only_for_the_release_they_were_read_in(version: str) -> None:
    grades = {grade for _, grade in hard_rules(Release.load(version), "engine")}
    assert grades == {"exact" if version == "1.3.0rc3" else "unknown"}
