from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import HF_NAMES, Unified, make_unified, write_format
from support.modules import convert_quietly, load_rank, run_ranks
from torch import Tensor

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.decoder import Decoder
from trtx.quant.linear import Linear, dequantize_int4
from trtx.quant.read_format import read_quant_format

# 4 ranks have a key-value head between two of them, and one group of columns each.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "attention_bias": True,
}
RANKS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)]


def float_weight(linear: Linear) -> Tensor:
    """The float weight [N, K] that a linear stands for, pre_quant_scale included."""
    if linear.weight.dtype == torch.uint8:
        weight = dequantize_int4(linear.weight, linear.weight_scale)
    else:
        weight = linear.weight.float()
        if "weight_scale" in dict(linear.named_parameters()):
            weight = weight * linear.weight_scale[:, None]
    return weight if linear.pre_quant_scale is None else weight * linear.pre_quant_scale


def split_rows(module: Decoder, layer: int) -> dict[str, Tensor]:
    """A rank's fused weights of one layer by their names in the checkpoint."""
    attention, mlp = module.layers[str(layer)].attention, module.layers[str(layer)].mlp
    d, kv = attention.head_dim, attention.kv_heads
    q, k, v = float_weight(attention.qkv).split([attention.heads * d, kv * d, kv * d])
    gate, up = float_weight(mlp.gate_up).chunk(2)
    return {
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": float_weight(attention.out),
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": float_weight(mlp.down),
    }


def reassemble(parts: list[Tensor], source: str, num_kv_heads: int) -> Tensor:
    """The whole weight of the tensor-parallel ranks' parts, by the rules that the layout documents."""
    if source in ("self_attn.o_proj", "mlp.down_proj"):
        return torch.cat(parts, 1)
    if source in ("self_attn.k_proj", "self_attn.v_proj") and len(parts) > num_kv_heads:
        repeats = len(parts) // num_kv_heads
        for start in range(0, len(parts), repeats):
            assert all(torch.equal(part, parts[start]) for part in parts[start : start + repeats])
        parts = parts[::repeats]
    return torch.cat(parts)


# Every cut of one format, and the finest of every format.
CUTS = [("int4_awq", *ranks) for ranks in RANKS[:-1]] + [(algorithm, *RANKS[-1]) for algorithm in HF_NAMES]


@pytest.mark.parametrize(("algorithm", "tensor", "pipeline"), CUTS)
def test_the_ranks_of_any_cut_put_together_are_the_checkpoint(
    tmp_path: Path, algorithm: str, tensor: int, pipeline: int
) -> None:
    checkpoint = make_unified(tmp_path / "checkpoint", algorithm, **SHAPE)
    convert_quietly(checkpoint.folder, tmp_path / "weights", "float32", tensor, pipeline)
    ranks = [load_rank(tmp_path / "weights", rank)[0] for rank in range(tensor * pipeline)]
    for layer in range(3):
        owners = [module for module in ranks if str(layer) in module.layers]
        assert len(owners) == tensor
        split = [split_rows(module, layer) for module in owners]
        for source in split[0]:
            whole = reassemble([part[source] for part in split], source, SHAPE["num_key_value_heads"])
            torch.testing.assert_close(whole, checkpoint.weights[f"model.layers.{layer}.{source}.weight"])
    head = torch.cat([module.lm_head.weight for module in ranks[-tensor:]])
    assert torch.equal(head, checkpoint.weights["lm_head.weight"])
    for module in ranks[:tensor]:
        assert torch.equal(module.embed.weight, checkpoint.weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("algorithm", HF_NAMES)
def test_several_ranks_compute_what_one_computes(tmp_path: Path, algorithm: str) -> None:
    checkpoint = make_unified(tmp_path / "checkpoint", algorithm, **SHAPE, initializer_range=0.05)
    tokens_BT = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    answers = []
    for tensor, pipeline in ((1, 1), (2, 1), (4, 2)):
        weights = tmp_path / f"{tensor}-{pipeline}"
        convert_quietly(checkpoint.folder, weights, "float32", tensor, pipeline)
        ranks = [load_rank(weights, rank)[0] for rank in range(tensor * pipeline)]
        answers.append(run_ranks(ranks, tensor, tokens_BT))
    # Sums in another order may cross a rounding boundary of the activations, one step of their format.
    # A token's largest number is its rank's own in fp8_dynamic.
    bound = {"fp8": 0.02, "fp8_dynamic": 0.05, "int8_sq": 0.02, "w4a8_awq": 0.02}.get(algorithm, 1e-5)
    for other in answers[1:]:
        assert (other - answers[0]).norm() <= bound * answers[0].norm()


def test_a_tied_model_has_its_table_on_the_first_and_the_last_stage(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "checkpoint", "none", **SHAPE, tie_word_embeddings=True)
    convert_quietly(checkpoint.folder, tmp_path / "weights", "float32", 1, 2)
    for rank in (0, 1):
        module, tensors = load_rank(tmp_path / "weights", rank)
        assert module.tied
        assert torch.equal(tensors["embed.weight"], checkpoint.weights["model.embed_tokens.weight"])


def test_float_weights_are_rounded_to_the_engine_dtype_and_scales_are_not(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "checkpoint", "fp8", **SHAPE)
    convert_quietly(checkpoint.folder, tmp_path / "weights", "bfloat16")
    _, tensors = load_rank(tmp_path / "weights", 0)
    expected = checkpoint.weights["model.embed_tokens.weight"].bfloat16()
    assert torch.equal(tensors["embed.weight"], expected)
    assert tensors["layers.0.mlp.down.weight_scale"].dtype == torch.float32
    assert tensors["layers.0.attention.qkv.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("algorithm", HF_NAMES)
def test_the_format_is_read_from_the_checkpoint(tmp_path: Path, algorithm: str) -> None:
    kv_cache = "int8" if algorithm == "int8_wo" else "fp8"
    checkpoint = make_unified(tmp_path, algorithm, kv_cache=kv_cache, **SHAPE)
    with Checkpoint(checkpoint.folder) as source:
        found = read_quant_format(source)
    assert (found.algorithm, found.kv_cache) == (algorithm, kv_cache)


def test_a_folder_that_says_nothing_about_quantization_is_not_quantized(tmp_path: Path) -> None:
    make_unified(tmp_path, "none", **SHAPE)
    (tmp_path / "hf_quant_config.json").unlink()
    with Checkpoint(tmp_path) as source:
        assert read_quant_format(source).algorithm == "none"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"quant_algo": "W4A8_NVFP4_FP8"}, "the quantization 'W4A8_NVFP4_FP8' cannot be run"),
        ({"kv_cache_quant_algo": "NVFP4"}, "the KV cache format 'NVFP4' cannot be run"),
        ({"quant_algo": "NVFP4", "group_size": 32}, "says group_size: 32"),
        ({"quant_algo": "W4A16_AWQ", "group_size": 7}, "says group_size: 7"),
        ({"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": True}, "says has_zero_point: True"),
    ],
)
def test_a_format_that_cannot_be_run_is_refused_by_name(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    make_unified(tmp_path, "none", **SHAPE)
    write_format(tmp_path, "none", **facts)
    with pytest.raises(UsageProblem, match=message):
        convert_quietly(tmp_path, tmp_path / "weights")


def change(checkpoint: Unified, changes: dict[str, Tensor | None]) -> None:
    """Rewrite tensors of a checkpoint; None removes one."""
    path = checkpoint.folder / "model.safetensors"
    tensors: dict[str, Tensor | None] = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


MLP = "model.layers.1.mlp"


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("fp8", {f"{MLP}.up_proj.input_scale": torch.tensor(0.03)}, "up_proj cannot be fused"),
        ("int8_sq", {f"{MLP}.up_proj.pre_quant_scale": torch.ones(128)}, "up_proj cannot be fused"),
        ("fp8", {f"{MLP}.down_proj.weight": torch.zeros(128, 512)}, "down_proj.weight in .* is stored as F32"),
        ("int4_awq", {f"{MLP}.up_proj.pre_quant_scale": torch.ones(128)}, "up_proj has a pre_quant_scale"),
        ("int8_wo", {f"{MLP}.up_proj.weight_scale": None}, "has no tensor model.layers.1.mlp.up_proj.weight_scale"),
        ("none", {f"{MLP}.up_proj.weight": torch.zeros(64, 128)}, "up_proj.weight in .* has the wrong shape"),
    ],
)
def test_a_checkpoint_that_would_be_misread_is_refused(
    tmp_path: Path, algorithm: str, changes: dict[str, Tensor | None], message: str
) -> None:
    checkpoint = make_unified(tmp_path / "checkpoint", algorithm, **SHAPE)
    change(checkpoint, changes)
    with pytest.raises(VerificationFailed, match=message):
        convert_quietly(checkpoint.folder, tmp_path / "weights")
    assert not list((tmp_path / "weights").glob("*.safetensors"))


def test_a_scale_that_awq_folded_away_counts_as_one(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "checkpoint", "int4_awq", **SHAPE)
    change(checkpoint, {f"{MLP}.down_proj.pre_quant_scale": None})
    convert_quietly(checkpoint.folder, tmp_path / "weights")
    _, tensors = load_rank(tmp_path / "weights", 0)
    assert torch.equal(tensors["layers.1.mlp.down.pre_quant_scale"], torch.ones(512))
