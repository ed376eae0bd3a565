"""Gemma 2: norms before and after each part, capped scores and logits, every other layer with a window
(arXiv:2408.00118)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_activation, read_rope, read_sizes, read_windows, refuse

LAYER_NORMS = (
    ("attention_norm", "input_layernorm"),
    ("attention_post_norm", "post_attention_layernorm"),
    ("mlp_norm", "pre_feedforward_layernorm"),
    ("mlp_post_norm", "post_feedforward_layernorm"),
)


def read_config(config: HfConfig) -> dict[str, Any]:
    """Gemma2Config of transformers."""
    kinds = [("sliding_attention", "full_attention")[layer % 2] for layer in range(config["num_hidden_layers"])]
    return {
        **read_gemma(config),
        **read_rope(config),
        "windows": read_windows(config.get("layer_types") or kinds, config.get("sliding_window", 4096)),
        "attention_softcap": config.get("attn_logit_softcapping", 50.0) or 0.0,
        "logit_softcap": config.get("final_logit_softcapping", 30.0) or 0.0,
    }


def read_gemma(config: HfConfig) -> dict[str, Any]:
    """What Gemma 2 and 3 have alike."""
    refuse(config, "use_bidirectional_attention")
    activation = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    return {
        **read_sizes({"head_dim": 256, "tie_word_embeddings": True, **config}),
        "activation": read_activation(activation),
        "attention_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": config["hidden_size"] ** 0.5,
    }


ARCHITECTURE = Architecture(read_config, norm="rms_plus_one", layer_norms=LAYER_NORMS)
