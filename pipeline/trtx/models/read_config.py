"""Reading config.json: what the architectures have in common. Imports no torch.

transformers 4 wrote `rope_theta`, `rope_scaling`, `torch_dtype`; transformers 5 writes `rope_parameters`, `dtype`. An
entry that is missing has the default that transformers' configuration class of the architecture gives it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trtx.errors import UsageProblem, did_you_mean
from trtx.models.architecture import HfConfig

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

# Names in config.json → what models/blocks.py computes. gelu_new and gelu_pytorch_tanh are one formula.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

# RoPE kinds and their parameters without a default (transformers.modeling_rope_utils); see models/rope.py.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def read_sizes(config: HfConfig) -> dict[str, Any]:
    """Sizes under their usual names, and what most architectures call alike."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or hidden // heads,
        "max_position_embeddings": config["max_position_embeddings"],
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "activation": read_activation(config.get("hidden_act", "silu")),
    }


def read_activation(name: str) -> Activation:
    """Raises UsageProblem for a function that trtx has no code for."""
    if name not in ACTIVATIONS:
        raise UsageProblem(
            f"the activation {name!r} is not supported",
            why="config.json names it under `hidden_act`, `hidden_activation` or `activation_function`",
            fix=did_you_mean(str(name), ACTIVATIONS),
        )
    return ACTIVATIONS[name]


def read_rope(config: HfConfig, theta: float = 10000.0) -> dict[str, Any]:
    """The fields rope_theta and rope_scaling of a model that has one RoPE, over whole heads."""
    own = read_rope_entry(config)
    if own.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1.0):
        raise UsageProblem(
            "RoPE on a part of each head is not supported in this architecture",
            why="transformers' own code of it rotates whole heads",
            fix="use a model without partial_rotary_factor",
        )
    return read_rope_fields(config, own, theta)


def read_rope_entry(config: HfConfig) -> dict[str, Any]:
    """What transformers 4 calls rope_scaling and 5 rope_parameters."""
    return dict(config.get("rope_scaling") or config.get("rope_parameters") or {})


def read_rope_fields(config: HfConfig, own: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The fields rope_theta and rope_scaling; `theta` is the architecture's default."""
    return {
        "rope_theta": own.get("rope_theta") or config.get("rope_theta") or theta,
        "rope_scaling": read_scaling(config, own),
    }


def read_scaling(config: HfConfig, rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of a scaled RoPE as floats, with `rope_type`; None for plain RoPE.

    Only what the kind uses is kept, defaults filled in, so that configs written by different transformers agree.
    """
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise UsageProblem(
            f"RoPE scaling of type {rope_type!r} is not supported",
            why="config.json names it under `rope_parameters` or `rope_scaling`",
            fix=f"use a model with one of: {', '.join(ROPE_TYPES)}",
        )
    if missing := [key for key in ROPE_TYPES[rope_type] if rope.get(key) is None]:
        raise UsageProblem(
            f"RoPE scaling of type {rope_type!r} lacks {', '.join(missing)}",
            fix="complete config.json's rope parameters",
        )
    if rope_type == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": rope_type}
    for key in ROPE_TYPES[rope_type]:
        value = rope[key]
        scaling[key] = [float(item) for item in value] if isinstance(value, list | tuple) else float(value)
    if rope_type in ("llama3", "yarn", "longrope"):
        scaling |= _read_extension(config, rope, rope_type)
    return scaling


def _read_extension(config: HfConfig, rope: Mapping[str, Any], rope_type: str) -> dict[str, Any]:
    """What the kinds that extend a model's length need to know about the length it was trained for."""
    longest = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or longest
    found: dict[str, Any] = {"original_max_position_embeddings": float(original)}
    if rope_type == "llama3":
        return found
    factor = float(rope.get("factor") or longest / original)
    attention_factor = rope.get("attention_factor")
    if rope_type == "longrope":
        if attention_factor is None:
            attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        return {**found, "attention_factor": float(attention_factor)}
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(factor, rope.get("mscale"), rope.get("mscale_all_dim"))
    return {
        **found,
        "factor": factor,
        "attention_factor": float(attention_factor),
        "beta_fast": float(rope.get("beta_fast") or 32),
        "beta_slow": float(rope.get("beta_slow") or 1),
        "truncate": bool(rope.get("truncate", True)),
    }


def _yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Peng et al., YaRN, arXiv:2309.00071, section 3.4; the two mscales are DeepSeek's."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


def read_rotary_dim(head_dim: int, factor: float | None) -> int:
    """Channels of a head that are rotated."""
    return int(head_dim * (1.0 if factor is None else factor))


def read_windows(layer_types: Sequence[str], window: int | None) -> tuple[int, ...]:
    """The window of each layer, 0 for none, of transformers' names of layer kinds."""
    kinds = {"full_attention": 0, "sliding_attention": window or 0}
    if unknown := [kind for kind in layer_types if kind not in kinds]:
        raise UsageProblem(
            f"layers of the kind {unknown[0]!r} are not supported",
            why="config.json names it under `layer_types`",
            fix=f"use a model whose layers are {' or '.join(kinds)}",
        )
    return tuple(kinds[kind] for kind in layer_types)


def refuse(config: HfConfig, *features: str) -> None:
    """Raise UsageProblem when one of these entries is set: the model computes something that trtx does not."""
    for name in features:
        if config.get(name):
            raise UsageProblem(
                f"models with `{name}` are not supported", why="config.json sets it", fix="use a model without it"
            )
