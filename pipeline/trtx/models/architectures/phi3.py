"""Phi-3, Phi-3.5 and Phi-4-mini: Llama with fused matrices, RoPE on a part of each head, LongRoPE
(arXiv:2404.14219)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_rope_entry, read_rope_fields, read_rotary_dim, read_sizes


def read_config(config: HfConfig) -> dict[str, Any]:
    """Phi3Config of transformers. Its oldest files call LongRoPE `su` or `yarn`."""
    sizes = read_sizes({"rms_norm_eps": 1e-5, **config})
    rope = read_rope_entry(config)
    if (rope.get("rope_type") or rope.get("type")) in ("su", "yarn"):
        rope["rope_type"] = "longrope"
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    return {
        **sizes,
        **read_rope_fields({"original_max_position_embeddings": 4096, **config}, rope, 10000.0),
        "rotary_dim": read_rotary_dim(sizes["head_dim"], partial),
        "windows": (config.get("sliding_window") or 0,) * sizes["num_layers"],
    }


ARCHITECTURE = Architecture(read_config, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))
