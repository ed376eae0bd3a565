"""Mixtures of experts by ModelOpt: what is exported, what the engine makes of it, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.architectures import make_model
from support.demo import some_docs
from support.modules import TOKENS_PER_BLOCK, convert_quietly, make_spec

from tests.engine.conftest import write_tokenizer
from tests.unit.quant.conftest import Export, calibrate, write_data
from trtx.backends.inductor.check import collect_logits, distance, load_heldout, make_batching, measure_perplexity
from trtx.backends.inductor.evidence import make_tolerances
from trtx.backends.inductor.module import make_eager
from trtx.backends.inductor.reference import load_checkpoint, load_model
from trtx.backends.inductor.spec import make_card
from trtx.errors import UsageProblem
from trtx.models.checkpoint import load_model_config
from trtx.models.config import DType
from trtx.models.formats import NOT_CALIBRATED_FOR_EXPERTS, NOT_FOR_EXPERTS, QuantFormat
from trtx.models.layout import make_layout
from trtx.runtime.card import Limits
from trtx.runtime.program import load_weights

LIMITS = Limits(max_batch_size=16, max_num_tokens=1024, max_seq_len=64)
SIZES = {
    "vocab_size": 258,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "initializer_range": 0.05,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MixtralForCausalLM": ("experts", {}),
    # One layer with experts, one without.
    "Qwen3MoeForCausalLM": ("experts in every other layer", {"moe_intermediate_size": 128, "num_experts_per_tok": 2}),
}
MIXTRAL, QWEN = MODELS
CASES = [
    (MIXTRAL, "fp8", "float32"),
    (MIXTRAL, "fp8", "bfloat16"),
    (MIXTRAL, "int8_wo", "float32"),
    (MIXTRAL, "int4_awq", "float32"),
    (MIXTRAL, "nvfp4", "float32"),
    (MIXTRAL, "mxfp4", "float32"),
    (QWEN, "fp8_dynamic", "float32"),
    (QWEN, "int8_wo", "bfloat16"),
    (QWEN, "int4_wo", "float32"),
    (QWEN, "int4_wo", "bfloat16"),
    (QWEN, "mxfp8", "float32"),
]


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by architecture."""
    folders = {}
    for architecture, (name, own) in MODELS.items():
        folders[architecture] = tmp_path_factory.mktemp(architecture) / "model"
        make_model(folders[architecture], architecture, name, **SIZES, **own)
        write_tokenizer(folders[architecture])
    return folders


@pytest.fixture(scope="module")
def export_mixture(mixtures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Export]:
    """Calibrate a mixture in a format, once, with little text."""
    texts = write_data(tmp_path_factory.mktemp("data"), some_docs()["train"][:6], some_docs()["validation"][:8])
    made: dict[tuple[str, str, tuple[str, ...]], Export] = {}

    def make(architecture: str, algorithm: str, *exclude: str) -> Export:
        key = (architecture, algorithm, exclude)
        if key not in made:
            output, excluded = tmp_path_factory.mktemp("exports") / "out", ("lm_head", *exclude)
            made[key] = calibrate(mixtures[architecture], texts, output, algorithm=algorithm, exclude=excluded)
        return made[key]

    return make


@pytest.mark.parametrize(("architecture", "algorithm", "dtype"), CASES)
def test_the_engine_has_the_perplexity_that_modelopt_measured(
    export_mixture: Callable[..., Export],
    mixtures: dict[str, Path],
    tmp_path: Path,
    architecture: str,
    algorithm: str,
    dtype: DType,
) -> None:
    made = export_mixture(architecture, algorithm)
    heldout = load_heldout(made.folder)
    window = heldout.tokens.shape[1] - 1
    config = convert_quietly(made.folder, tmp_path / "weights", dtype)
    card = make_card(make_spec(config, LIMITS), {}, {}, "")
    blocks = 1 + LIMITS.max_batch_size * math.ceil(window / TOKENS_PER_BLOCK)
    programs = make_eager(card, load_weights(card, tmp_path / "weights"), blocks)
    bounds, compared = make_tolerances(programs.card), heldout.tokens[:4, :48]
    answers = collect_logits(programs, compared)
    perplexity = measure_perplexity(programs, heldout.tokens, make_batching(programs.card, window))
    assert abs(perplexity / heldout.perplexity - 1) <= min(0.003, bounds["perplexity_vs_modelopt"])
    reference = load_checkpoint(made.folder, LIMITS.max_seq_len).logits(compared)
    assert distance(answers, reference) <= bounds["logits_vs_checkpoint"]
    model = load_model(mixtures[architecture], LIMITS.max_seq_len).logits(compared)
    # Experts are quantized: the model's own logits are farther away than rounding alone would bring them.
    assert bounds["logits_vs_model"] >= distance(answers, model) > distance(reference, model) / 2 > 0


def test_experts_are_exported_with_scales_of_their_own(export_mixture: Callable[..., Export], tmp_path: Path) -> None:
    made = export_mixture(MIXTRAL, "int4_awq")
    convert_quietly(made.folder, tmp_path / "weights")
    tensors = load_file(tmp_path / "weights" / "rank0.safetensors")
    assert tensors["layers.1.mlp.gate_up.weight"].shape == (4, 512, 64)
    scales = tensors["layers.1.mlp.gate_up.weight_scale"]
    assert scales.shape == (4, 512, 1)
    # Gate rows first, then up rows, of the same expert.
    for expert in range(4):
        of_expert = [f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight_scale" for name in ("w1", "w3")]
        assert torch.equal(scales[expert], torch.cat([made.tensors[name] for name in of_expert]))
    assert "layers.1.attention.out.pre_quant_scale" in tensors


def test_experts_that_are_excluded_stay_as_they_are(export_mixture: Callable[..., Export], tmp_path: Path) -> None:
    made = export_mixture(QWEN, "int8_wo", "*experts*")
    config = convert_quietly(made.folder, tmp_path / "weights")
    stored = {tensor.name: tensor.dtype for tensor in config.ranks[0].tensors}
    assert stored["layers.1.mlp.gate_up.weight"] == "float32"
    assert stored["layers.1.attention.qkv.weight"] == "int8"


@pytest.mark.parametrize(
    ("exclude", "what"),
    [
        ("*.experts.1.*", r"model\.layers\.0\.block_sparse_moe\.experts\.1\.w1 cannot be excluded"),
        ("w2", r"model\.layers\.0\.block_sparse_moe\.experts\.0\.w2 cannot be excluded"),
    ],
)
def test_some_experts_or_matrices_alone_are_not_excluded(
    export_mixture: Callable[..., Export], exclude: str, what: str
) -> None:
    with pytest.raises(UsageProblem, match=what):
        export_mixture(MIXTRAL, "int8_wo", exclude)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("algorithm", NOT_FOR_EXPERTS)
def test_formats_that_experts_cannot_have_are_refused_at_plan_time(
    mixtures: dict[str, Path], architecture: str, algorithm: Any
) -> None:
    config = load_model_config(mixtures[architecture])
    with pytest.raises(UsageProblem, match=f"{architecture} cannot be quantized with {algorithm} yet") as caught:
        make_layout(config, QuantFormat(algorithm=algorithm), "float32")
    assert caught.value.why == NOT_FOR_EXPERTS[algorithm]


def test_groups_of_columns_that_act_order_scatters_are_refused_for_experts(mixtures: dict[str, Path]) -> None:
    config = load_model_config(mixtures[MIXTRAL])
    scattered = QuantFormat(algorithm="int4_gptq", reordered=True)
    with pytest.raises(UsageProblem, match="int4_gptq yet") as caught:
        make_layout(config, scattered, "float32")
    assert "desc_act" in caught.value.why
    make_layout(config, scattered.model_copy(update={"reordered": False}), "float32")


@pytest.mark.parametrize("algorithm", NOT_CALIBRATED_FOR_EXPERTS)
def test_formats_that_modelopt_cannot_make_for_experts_are_refused(
    export_mixture: Callable[..., Export], algorithm: str
) -> None:
    with pytest.raises(UsageProblem, match=f"{algorithm} yet") as caught:
        export_mixture(MIXTRAL, algorithm)
    assert caught.value.why == NOT_CALIBRATED_FOR_EXPERTS[algorithm]


def test_experts_whose_columns_do_not_divide_into_groups_are_refused(tmp_path: Path) -> None:
    make_model(tmp_path, MIXTRAL, "experts", **{**SIZES, "intermediate_size": 96})
    with pytest.raises(UsageProblem, match=r"layers\.0\.mlp\.down cannot be quantized with int4_wo"):
        make_layout(load_model_config(tmp_path), QuantFormat(algorithm="int4_wo"), "float32")
