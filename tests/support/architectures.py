"""Random small models of every architecture, as transformers makes them, and what of an architecture each one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from trtx.models.config import ModelConfig

VOCAB_SIZE = 66
# Every model is asked about sequences of this many tokens.
LENGTH = 43

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 36,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 64,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
}
THETA = {"rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, **THETA}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500000.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + pair / 8 for pair in range(6)],
    "long_factor": [2.0 + pair for pair in range(6)],
    **THETA,
}
UNLIKE: dict[str, Any] = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention"] * 2}
ODD = {"hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 70}

# architecture → the class of its config, and the models by what is particular about them.
MODELS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "LlamaForCausalLM": (
        "LlamaConfig",
        {
            "grouped heads": {},
            "every bias, tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
            "a head per key-value head": {"num_key_value_heads": 4},
            "odd sizes": {**ODD, "head_dim": 20},
            "heads of 80": {"head_dim": 80},
            "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **THETA}},
            "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **THETA}},
            "llama3": {"rope_parameters": LLAMA3},
            "yarn": {"rope_parameters": YARN},
            "yarn, mscale": {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
            "longrope": {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 16, "factor": 4.0}},
            "gelu": {"hidden_act": "gelu"},
        },
    ),
    "MistralForCausalLM": (
        "MistralConfig",
        {
            "window": {"sliding_window": 11},
            "window of one block": {"sliding_window": 8, "head_dim": 80, "num_key_value_heads": 1},
            "no window": {"sliding_window": None, "tie_word_embeddings": True},
        },
    ),
    "Qwen2ForCausalLM": (
        "Qwen2Config",
        {
            "biases": {"head_dim": None},
            "upper window": {"head_dim": None, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
            "yarn, tied": {"head_dim": None, "rope_parameters": YARN, "tie_word_embeddings": True},
            "odd sizes": {**ODD, "head_dim": None},
        },
    ),
    "Qwen3ForCausalLM": (
        "Qwen3Config",
        {
            "norms of heads": {},
            "biases, tied": {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 80},
            "window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            "yarn": {"rope_parameters": YARN, "num_key_value_heads": 4},
        },
    ),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {
            "experts": {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20},
            "experts, normalized": {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 24,
                "norm_topk_prob": True,
                "tie_word_embeddings": True,
            },
            "experts in every other layer": {
                "num_experts": 4,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 24,
                "decoder_sparse_step": 2,
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": 9,
            },
        },
    ),
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        {
            "caps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 10},
            "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 20},
            "given layer types": {**UNLIKE, "layer_types": UNLIKE["layer_types"][:3], "sliding_window": 6},
            "odd sizes": {**ODD, "query_pre_attn_scalar": 17, "tie_word_embeddings": False, "attention_bias": True},
        },
    ),
    "Gemma3ForCausalLM": (
        "Gemma3TextConfig",
        {
            "two ropes": {"num_hidden_layers": 3, "sliding_window_pattern": 3, "sliding_window": 10},
            "local layers only": {"num_hidden_layers": 2, "sliding_window": 5, "num_key_value_heads": 1},
            "linear, capped logits": {
                **UNLIKE,
                "layer_types": UNLIKE["layer_types"][:3],
                "sliding_window": 12,
                "final_logit_softcapping": 3.0,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
        },
    ),
    "Phi3ForCausalLM": (
        "Phi3Config",
        {
            "fused": {"head_dim": None},
            "partial rotary": {
                "hidden_size": 80,
                "head_dim": None,
                "rope_parameters": {**THETA, "partial_rotary_factor": 0.4},
            },
            "window": {"head_dim": None, "sliding_window": 9, "num_key_value_heads": 4, "tie_word_embeddings": True},
            "short longrope": {
                "hidden_size": 48,
                "head_dim": None,
                "original_max_position_embeddings": 64,
                "rope_parameters": LONGROPE,
            },
            "long longrope, partial rotary": {
                "hidden_size": 80,
                "head_dim": None,
                "original_max_position_embeddings": 16,
                "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.6},
            },
        },
    ),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {
            "experts": {"num_local_experts": 4},
            "experts, window": {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 9, "head_dim": 20},
            "all experts, tied": {"num_local_experts": 2, "tie_word_embeddings": True, "num_key_value_heads": 4},
        },
    ),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {
            "learned positions": {},
            "scores not scaled, own head": {"scale_attn_weights": False, "tie_word_embeddings": False, "n_inner": 50},
            "gelu, odd heads": {"n_embd": 45, "activation_function": "gelu"},
        },
    ),
    "GPTNeoXForCausalLM": (
        "GPTNeoXConfig",
        {
            "parallel residual": {"rope_parameters": {**THETA, "partial_rotary_factor": 0.5}},
            "one after the other": {
                "use_parallel_residual": False,
                "attention_bias": False,
                "rope_parameters": {**THETA, "partial_rotary_factor": 1.0},
            },
            "linear, tied": {
                "hidden_size": 320,
                "tie_word_embeddings": True,
                "hidden_act": "gelu_new",
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, **THETA, "partial_rotary_factor": 0.25},
            },
        },
    ),
}

# Of each architecture the model that is compiled, too.
COMPILED = {
    "LlamaForCausalLM": "every bias, tied",
    "MistralForCausalLM": "window of one block",
    "Qwen2ForCausalLM": "upper window",
    "Qwen3ForCausalLM": "window",
    "Qwen3MoeForCausalLM": "experts in every other layer",
    "Gemma2ForCausalLM": "caps",
    "Gemma3ForCausalLM": "two ropes",
    "Phi3ForCausalLM": "long longrope, partial rotary",
    "MixtralForCausalLM": "experts, window",
    "GPT2LMHeadModel": "learned positions",
    "GPTNeoXForCausalLM": "parallel residual",
}

CASES = [(architecture, name) for architecture, (_, models) in MODELS.items() for name in models]


def make_model(folder: Path, architecture: str, name: str, **overrides: Any) -> PreTrainedModel:
    """Save a random model and return it. Its norms and biases are random too, or a lost one would not show."""
    config_class, models = MODELS[architecture]
    sizes = GPT2_SIZES if architecture == "GPT2LMHeadModel" else SIZES
    chosen = {**sizes, **models[name], **overrides}
    if architecture in ("GPTNeoXForCausalLM",):
        chosen = {key: value for key, value in chosen.items() if key not in ("head_dim", "num_key_value_heads")}
    if chosen.get("head_dim", 0) is None:
        del chosen["head_dim"]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**chosen)
    # Its fused kernels know no caps on scores.
    config._attn_implementation = "eager"
    model: PreTrainedModel = getattr(transformers, architecture)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    return model


def find_features(config: ModelConfig) -> list[str]:
    """What a model has beyond the plainest decoder, by what its config was read as."""
    scaling, heads = config.rope_scaling, config.num_heads // config.num_kv_heads
    found = {
        "grouped heads": 1 < heads < config.num_heads,
        "one key-value head": heads == config.num_heads and heads > 1,
        "heads of 12, 15, 20 or 24 channels": config.head_dim in (12, 15, 20, 24),
        "heads of 80 channels": config.head_dim == 80,
        "attention bias": config.attention_bias,
        "MLP bias": config.mlp_bias,
        "tied embeddings": config.tie_word_embeddings,
        "sliding window": any(0 < window < LENGTH for window in config.windows),
        "sliding window in some layers": any(0 < window < LENGTH for window in config.windows) and 0 in config.windows,
        "partial rotary": 0 < config.rotated_channels < config.head_dim,
        "learned positions": config.rotated_channels == 0,
        f"RoPE {scaling['rope_type'] if scaling else 'default'}": config.rotated_channels > 0,
        "RoPE of its own in local layers": config.local_rope_theta is not None,
        "capped scores": config.attention_softcap > 0,
        "capped logits": config.logit_softcap > 0,
        "parallel residual": config.parallel_residual,
        "experts": config.num_experts > 0,
        "dense layers among experts": bool(config.dense_layers),
        f"activation {config.activation}": True,
    }
    return [name for name, has in found.items() if has]
