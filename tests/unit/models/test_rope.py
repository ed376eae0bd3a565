from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig, Phi3Config
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as apply_to_a_part
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from trtx.models.config import read_model_config, uses_long_factors
from trtx.models.layout import make_shard, rope_tables
from trtx.models.rope import attention_factor, make_inv_freq, make_rotation, rotate

THETA = {"rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, **THETA}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", **THETA},
    "linear": {"rope_type": "linear", "factor": 4.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, **THETA},
    "llama3": {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 64},
    "yarn": YARN,
    "yarn with a given attention factor": {**YARN, "attention_factor": 1.3},
    "yarn with mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn, bounds not rounded": {**YARN, "truncate": False, "beta_fast": 24, "beta_slow": 2},
    "yarn that shortens": {**YARN, "factor": 0.5},
}
POSITIONS = torch.tensor([[0, 1, 63, 64, 511]])


def read(config: Any, architecture: str) -> Any:
    model = read_model_config({**config.to_dict(), "architectures": [architecture]})
    return rope_tables(model, make_shard(model))[0]


@pytest.mark.parametrize("kind", SCALINGS)
def test_positions_are_encoded_bit_for_bit_like_transformers(kind: str) -> None:
    hf = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=512, rope_parameters=dict(SCALINGS[kind])
    )
    theirs = LlamaRotaryEmbedding(hf)
    table = read(hf, "LlamaForCausalLM")
    inv_freq = make_inv_freq(table)
    assert torch.equal(inv_freq, theirs.inv_freq)
    assert attention_factor(table.scaling) == theirs.attention_scaling
    q_BHTD = torch.randn(1, 2, 5, 64)
    cos, sin = theirs(q_BHTD, POSITIONS)
    expected, _ = apply_rotary_pos_emb(q_BHTD, q_BHTD, cos, sin)
    cos_BTD, sin_BTD = make_rotation(POSITIONS, inv_freq, attention_factor(table.scaling))
    found = rotate(q_BHTD.transpose(1, 2), cos_BTD[:, :, None], sin_BTD[:, :, None]).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_part_of_a_head_is_rotated_and_the_rest_kept() -> None:
    hf = GPTNeoXConfig(hidden_size=160, num_attention_heads=2, rope_parameters={**THETA, "partial_rotary_factor": 0.25})
    inv_freq = make_inv_freq(read(hf, "GPTNeoXForCausalLM"))
    theirs, q_BHTD = GPTNeoXRotaryEmbedding(hf), torch.randn(1, 2, 5, 80)
    assert torch.equal(inv_freq, theirs.inv_freq)
    expected, _ = apply_to_a_part(q_BHTD, q_BHTD, *theirs(q_BHTD, POSITIONS))
    cos, sin = (part[:, :, None] for part in make_rotation(POSITIONS, inv_freq))
    torch.testing.assert_close(rotate(q_BHTD.transpose(1, 2), cos, sin).transpose(1, 2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("extra", [{}, {"attention_factor": 1.1}, {"factor": 2.0}])
def test_longrope_has_a_row_for_short_and_one_for_long_sequences(extra: dict[str, float]) -> None:
    factors = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
    hf = Phi3Config(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        rope_parameters={"rope_type": "longrope", **THETA, **factors, **extra},
    )
    table = read(hf, "Phi3ForCausalLM")
    inv_freq, theirs = make_inv_freq(table), Phi3RotaryEmbedding(hf)
    assert attention_factor(table.scaling) == theirs.attention_scaling
    for max_seq_len, positions in ((64, torch.arange(64)), (65, torch.arange(65))):
        row = inv_freq[int(uses_long_factors(table.scaling, max_seq_len))]
        cos, _ = theirs(torch.zeros(1), positions[None])
        ours, _ = make_rotation(positions, row, attention_factor(table.scaling))
        torch.testing.assert_close(ours, cos[0, :, :8], rtol=0, atol=1e-6)
    assert not torch.equal(inv_freq[0], inv_freq[1])
