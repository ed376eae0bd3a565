from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from trtx.models.config import read_model_config
from trtx.models.rope import make_inv_freq, make_rotation, rotate

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_positions_are_encoded_bit_for_bit_like_transformers(kind: str) -> None:
    hf = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=512, rope_parameters=SCALINGS[kind]
    )
    config = read_model_config({**hf.to_dict(), "architectures": ["LlamaForCausalLM"]})
    theirs = LlamaRotaryEmbedding(hf)
    inv_freq = make_inv_freq(config)
    assert torch.equal(inv_freq, theirs.inv_freq)
    positions = torch.tensor([[0, 1, 63, 64, 511]])
    q_BHTD = torch.randn(1, 2, 5, 64)
    cos, sin = theirs(q_BHTD, positions)
    expected, _ = apply_rotary_pos_emb(q_BHTD, q_BHTD, cos, sin)
    cos_BTD, sin_BTD = make_rotation(positions, inv_freq)
    found = rotate(q_BHTD.transpose(1, 2), cos_BTD[:, :, None], sin_BTD[:, :, None]).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
