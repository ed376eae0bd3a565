"""The shape of a decoder-only model, read from a Hugging Face config.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trtx.errors import UsageProblem, did_you_mean

DType = Literal["float32", "bfloat16", "float16"]

# RoPE kinds whose frequencies do not depend on the length of the sequence and need no attention factor, with their
# parameters (transformers.modeling_rope_utils); see models/rope.py.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

# The `architectures` field of config.json → the module that builds the program.
ARCHITECTURES = {"LlamaForCausalLM": "trtx.models.llama"}


class ModelConfig(BaseModel):
    """Everything a compiled program depends on besides number formats; no weight values, no token ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: DType


def read_model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Build a ModelConfig from the content of a config.json.

    Format: https://huggingface.co/docs/transformers/model_doc/llama (LlamaConfig); transformers 4 wrote
    `rope_theta`, `rope_scaling` and `torch_dtype`, transformers 5 writes `rope_parameters` and `dtype`.

    Raises UsageProblem for an architecture, activation or position encoding trtx cannot compile.
    """
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in ARCHITECTURES:
        raise UsageProblem(
            f"trtx cannot compile the architecture {architecture}",
            why="config.json names it under `architectures`",
            fix=did_you_mean(architecture, ARCHITECTURES),
        )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UsageProblem(
            f"{architecture} with hidden_act {activation!r} is not supported", fix="use a model with silu"
        )
    try:
        shape = _read_shape(config)
    except (KeyError, TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        why = f"it lacks {error}" if isinstance(error, KeyError) else _first_line(error)
        raise UsageProblem(
            "config.json does not describe a model", why=why, fix="fetch or save the model again"
        ) from error
    if shape.head_dim % 2 or shape.num_heads % shape.num_kv_heads:
        raise UsageProblem(
            f"{shape.num_heads} attention heads of {shape.head_dim} channels over {shape.num_kv_heads} key-value heads "
            "are not supported",
            why="channels are rotated in pairs, and each key-value head serves equally many heads",
        )
    return shape


def _read_shape(config: Mapping[str, Any]) -> ModelConfig:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    rope = dict(config.get("rope_parameters") or {})
    return ModelConfig(
        architecture=config["architectures"][0],
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        max_position_embeddings=config["max_position_embeddings"],
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        rope_scaling=_read_rope_scaling(config.get("rope_scaling") or rope),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]


def _read_rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of a scaled RoPE as floats, with `rope_type`; None for plain RoPE.

    Only what the kind uses is kept, so that configs written by different transformers agree.
    """
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise UsageProblem(
            f"RoPE scaling of type {rope_type!r} is not supported",
            why="config.json names it under `rope_parameters` or `rope_scaling`",
            fix=f"use a model with one of: {', '.join(ROPE_TYPES)}",
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UsageProblem(
            "RoPE on a part of each head is not supported", fix="use a model without partial_rotary_factor"
        )
    if missing := [key for key in ROPE_TYPES[rope_type] if key not in rope]:
        raise UsageProblem(
            f"RoPE scaling of type {rope_type!r} lacks {', '.join(missing)}",
            fix="complete config.json's rope parameters",
        )
    if rope_type == "default":
        return None
    return {"rope_type": rope_type, **{key: float(rope[key]) for key in ROPE_TYPES[rope_type]}}
