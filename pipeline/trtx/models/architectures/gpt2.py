"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices [inputs, outputs] (Radford et al., 2019)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_activation, refuse


def read_config(config: HfConfig) -> dict[str, Any]:
    """GPT2Config of transformers."""
    refuse(config, "add_cross_attention", "scale_attn_by_inverse_layer_idx")
    hidden, heads = config["n_embd"], config["n_head"]
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": config.get("n_inner") or 4 * hidden,
        "num_layers": config["n_layer"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": config["n_positions"],
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "attention_bias": True,
        "mlp_bias": True,
        "activation": read_activation(config.get("activation_function", "gelu_new")),
        "attention_scale": None if config.get("scale_attn_weights", True) else 1.0,
        "rotary_dim": 0,
    }


ARCHITECTURE = Architecture(
    read_config,
    base="transformer",
    layers="h",
    embed="wte",
    positions="wpe",
    final_norm="ln_f",
    norm="layer",
    layer_norms=(("attention_norm", "ln_1"), ("mlp_norm", "ln_2")),
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up=("mlp.c_fc",),
    gated=False,
    down="mlp.c_proj",
    bare_base=True,
    transposed=True,
)
