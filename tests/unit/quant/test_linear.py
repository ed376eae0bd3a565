from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import HF_NAMES, Unified, make_unified, round_input
from support.modules import convert_quietly, load_rank

from trtx.models.decoder import Decoder
from trtx.models.layout import make_shard
from trtx.quant.linear import Linear, linear_factory

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}


def load(tmp_path: Path, algorithm: str) -> tuple[Unified, Decoder]:
    checkpoint = make_unified(tmp_path / "checkpoint", algorithm, **SHAPE)
    convert_quietly(checkpoint.folder, tmp_path / "weights")
    return checkpoint, load_rank(tmp_path / "weights", 0)[0]


@pytest.mark.parametrize("algorithm", HF_NAMES)
def test_every_linear_computes_what_its_checkpoint_describes(tmp_path: Path, algorithm: str) -> None:
    checkpoint, module = load(tmp_path, algorithm)
    layer = module.layers["0"]
    fused = {
        layer.attention.qkv: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        layer.attention.out: ("self_attn.o_proj",),
        layer.mlp.gate_up: ("mlp.gate_proj", "mlp.up_proj"),
        layer.mlp.down: ("mlp.down_proj",),
    }
    for linear, sources in fused.items():
        names = [f"model.layers.0.{source}" for source in sources]
        weight = torch.cat([checkpoint.weights[f"{name}.weight"] for name in names])
        x = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(1))
        expected = round_input(checkpoint.tensors, names[0], algorithm, x) @ weight.T
        torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-4)


def test_activations_beyond_the_calibrated_range_saturate_and_are_no_nan(tmp_path: Path) -> None:
    for algorithm in ("fp8", "int8_sq"):
        _, module = load(tmp_path / algorithm, algorithm)
        assert module.layers["0"].mlp.down(torch.full((1, 256), 1e6)).isfinite().all()


@pytest.mark.parametrize(
    ("algorithm", "dtype", "bytes_per_weight"),
    [("int8_wo", torch.int8, 1), ("int4_wo", torch.uint8, 0.5), ("fp8", torch.float8_e4m3fn, 1)],
)
def test_weights_stay_low_bit_in_memory(
    tmp_path: Path, algorithm: str, dtype: torch.dtype, bytes_per_weight: float
) -> None:
    _, module = load(tmp_path, algorithm)
    linear = module.layers["0"].mlp.down
    assert isinstance(linear, Linear)
    assert linear.weight.dtype == dtype
    assert linear.weight.nbytes == 128 * 256 * bytes_per_weight


def test_a_module_that_disagrees_with_the_layout_is_a_bug(tmp_path: Path) -> None:
    config = convert_quietly(make_unified(tmp_path / "c", "none", **SHAPE).folder, tmp_path / "w")
    make_linear = linear_factory(config.model, config.quantization, "float32", make_shard(config.model))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down"):
        make_linear("layers.0.mlp.down", 255, 128, False)
