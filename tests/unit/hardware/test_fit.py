"""What fits is computed before anything is spent, and formats run where the tables say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.architectures import CASES, make_model

from trtx.hardware.fit import WEIGHT_BITS, Setup, compute_need, find_misfit
from trtx.hardware.gpus import CATALOGUE
from trtx.hardware.support import SUPPORT, support_of, support_problem
from trtx.models.checkpoint import load_model_config
from trtx.models.formats import ALGORITHMS, SIMULATED_ON_CPU, QuantFormat
from trtx.models.layout import make_layout

GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """Llama 3.1 8B (https://huggingface.co/meta-llama/Llama-3.1-8B, config.json)."""

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    tie_word_embeddings: bool = False
    num_mlps: int = 32
    up_matrices: int = 2
    num_experts: int = 0
    expert_size: int = 0
    expert_activations: int = 0
    learned_positions: int = 0


LLAMA = Shape()
SETUP = Setup(
    algorithm="none",
    kv_cache="auto",
    dtype="bfloat16",
    max_batch_size=16,
    max_num_tokens=4096,
    max_seq_len=4096,
    tokens_per_block=32,
)


def test_an_8b_model_has_8_billion_weights_of_two_bytes() -> None:
    assert compute_need(LLAMA, SETUP).weights_bytes == 8_030_261_248 * 2


def test_weights_take_the_bits_of_their_format() -> None:
    linear = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    rest = compute_need(LLAMA, SETUP).weights_bytes - 2 * linear
    rows = 32 * (6144 + 4096 + 2 * 14336 + 4096)
    int8 = compute_need(LLAMA, replace(SETUP, algorithm="int8_wo")).weights_bytes
    int4 = compute_need(LLAMA, replace(SETUP, algorithm="int4_awq")).weights_bytes
    assert int8 == linear + 4 * rows + rest
    assert int4 == linear // 2 + 4 * linear // 128 + rest


def test_experts_take_the_bits_of_their_format_in_every_rank() -> None:
    """Mixtral 8x7B: 46.7 billion weights (arXiv:2401.04088)."""
    sizes = {"vocab_size": 32000, "num_mlps": 0, "num_experts": 8, "expert_size": 14336}
    mixtral = replace(LLAMA, **sizes)
    assert compute_need(mixtral, SETUP).weights_bytes == 46_702_792_704 * 2
    experts, attention = 32 * 8 * 3 * 4096 * 14336, 32 * (4096 * 6144 + 4096 * 4096)
    rows = 32 * (8 * (2 * 14336 + 4096) + 6144 + 4096)
    int8 = compute_need(mixtral, replace(SETUP, algorithm="int8_wo"))
    assert compute_need(mixtral, SETUP).weights_bytes - int8.weights_bytes == experts + attention - 4 * rows
    halved = compute_need(mixtral, replace(SETUP, tensor=2))
    assert compute_need(mixtral, SETUP).weights_bytes - halved.weights_bytes == attention


def test_tied_embeddings_are_counted_once() -> None:
    tied = compute_need(replace(LLAMA, tie_word_embeddings=True), SETUP)
    assert compute_need(LLAMA, SETUP).weights_bytes - tied.weights_bytes == 128256 * 4096 * 2


def test_a_token_of_the_cache_takes_keys_and_values_of_every_layer() -> None:
    assert compute_need(LLAMA, SETUP).kv_bytes_per_token == 131072
    assert compute_need(LLAMA, replace(SETUP, kv_cache="fp8")).kv_bytes_per_token == 65536


def test_one_sequence_takes_whole_blocks_and_the_null_block() -> None:
    need = compute_need(LLAMA, replace(SETUP, max_seq_len=33))
    assert need.kv_bytes == need.kv_least_bytes == 3 * 32 * 131072


@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_weights_of_every_architecture_are_counted_but_for_biases_and_norms_of_heads(
    tmp_path: Path, architecture: str, name: str
) -> None:
    make_model(tmp_path, architecture, name)
    model = load_model_config(tmp_path)
    tensors = {tensor.name: math.prod(tensor.shape) for tensor in make_layout(model, QuantFormat(), "float32").tensors}
    small = ("bias", "q_norm.weight", "k_norm.weight", "post_norm.weight", "inv_freq")
    counted = sum(numbers for name, numbers in tensors.items() if not name.endswith(small))
    assert compute_need(model, replace(SETUP, dtype="float32")).weights_bytes == 4 * counted


def test_ranks_share_weights_and_cache() -> None:
    one, four = compute_need(LLAMA, SETUP), compute_need(LLAMA, replace(SETUP, tensor=2, pipeline=2))
    assert four.kv_bytes_per_token == one.kv_bytes_per_token // 4
    embedding = 2 * 128256 * 4096 * 2
    assert abs((four.weights_bytes - embedding) * 4 / (one.weights_bytes - embedding) - 1) < 0.01


def test_what_fits_is_let_through() -> None:
    assert find_misfit(compute_need(LLAMA, SETUP), SETUP, 24 * GIB, "this machine") is None


def test_unknown_memory_refuses_nothing() -> None:
    assert find_misfit(compute_need(LLAMA, SETUP), SETUP, 0, "this machine") is None


def test_an_engine_larger_than_its_device_is_refused_with_its_parts() -> None:
    misfit = find_misfit(compute_need(LLAMA, SETUP), SETUP, 8 * GIB, "this machine")
    assert misfit is not None
    assert misfit.what.endswith("GiB, and this machine has 8.00 GiB")
    assert misfit.why.startswith("weights 14.96 GiB, KV cache 0.50 GiB for one whole sequence, activations")
    assert misfit.setting is None


def test_a_fixed_cache_counts_in_full() -> None:
    setup = replace(SETUP, kv_size_bytes=20 * GIB)
    assert find_misfit(compute_need(LLAMA, setup), setup, 24 * GIB, "l4-24gb") is not None


def test_a_cache_too_small_for_one_sequence_is_refused_at_its_size() -> None:
    setup = replace(SETUP, kv_size_bytes=100 << 20)
    misfit = find_misfit(compute_need(LLAMA, setup), setup, 80 * GIB, "h100")
    assert misfit is not None
    assert misfit.what == "a KV cache of 100.0 MiB cannot hold one sequence of 4096 tokens"
    assert misfit.setting == ("kv_cache", "size")


def test_the_bits_of_formats_agree_with_the_engine() -> None:
    stored = {name: facts for name, facts in ALGORITHMS.items() if name != "none" and not facts.dequantized}
    assert {name: (facts.weight_bits, facts.group_size) for name, facts in stored.items()} == WEIGHT_BITS


def test_what_is_simulated_agrees_with_the_engine() -> None:
    for arch in ("x86-64-v3", "x86-64-v4"):
        assert {name for name, level in SUPPORT[arch].items() if level == "simulated"} == set(SIMULATED_ON_CPU)


@pytest.mark.parametrize("gpu", CATALOGUE, ids=lambda gpu: gpu.name)
def test_every_device_says_how_it_runs_every_algorithm(gpu: object) -> None:
    for algorithm in ALGORITHMS:
        assert support_of(gpu.arch, algorithm) in ("native", "simulated", "none")  # type: ignore[attr-defined]
    assert set(SUPPORT[gpu.arch]) == set(ALGORITHMS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arch", "algorithm", "level"),
    [
        ("sm_80", "fp8", "none"),
        ("sm_89", "fp8", "native"),
        ("sm_90", "nvfp4", "none"),
        ("sm_100", "nvfp4", "native"),
        ("x86-64-v3", "int8_sq", "native"),
        ("x86-64-v4", "fp8", "simulated"),
    ],
)
def test_formats_run_where_the_hardware_has_them(arch: str, algorithm: str, level: str) -> None:
    assert support_of(arch, algorithm) == level


def test_a_simulation_is_said_to_be_one_and_a_gap_names_who_can() -> None:
    assert support_problem("x86-64-v3", "none") is None
    severity, what, why = support_problem("x86-64-v3", "fp8") or ("", "", "")
    assert (severity, what) == ("warning", "fp8 is simulated on x86-64-v3")
    assert "speed is not" in why
    assert support_problem("sm_80", "nvfp4") == (
        "error",
        "nvfp4 does not run on sm_80",
        "it needs sm_100, sm_103, sm_120",
    )
