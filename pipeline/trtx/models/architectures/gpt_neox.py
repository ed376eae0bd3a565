"""GPT-NeoX and Pythia: attention and MLP side by side, RoPE on a part of each head (Black et al., arXiv:2204.06745)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_rope_entry, read_rope_fields, read_rotary_dim, read_sizes


def read_config(config: HfConfig) -> dict[str, Any]:
    """GPTNeoXConfig of transformers."""
    sizes = read_sizes({"hidden_act": "gelu", "attention_bias": True, **config})
    rope = read_rope_entry(config)
    partial = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    return {
        **sizes,
        **read_rope_fields(config, rope, config.get("rotary_emb_base", 10000.0)),
        "norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "mlp_bias": True,
        "rotary_dim": read_rotary_dim(sizes["head_dim"], partial),
        "parallel_residual": config.get("use_parallel_residual", True),
    }


ARCHITECTURE = Architecture(
    read_config,
    base="gpt_neox",
    embed="embed_in",
    final_norm="final_layer_norm",
    head="embed_out",
    norm="layer",
    qkv=("attention.query_key_value",),
    qkv_fusion="by_head",
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    gated=False,
    down="mlp.dense_4h_to_h",
)
