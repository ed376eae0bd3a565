"""Mixtral: Mistral with a mixture of experts in every layer (Jiang et al., arXiv:2401.04088)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, ExpertNames, HfConfig
from trtx.models.read_config import read_rope, read_sizes


def read_config(config: HfConfig) -> dict[str, Any]:
    """MixtralConfig of transformers."""
    return {
        **read_sizes({"rms_norm_eps": 1e-5, **config}),
        **read_rope(config, 1e6),
        "windows": (config.get("sliding_window") or 0,) * config["num_hidden_layers"],
        "num_experts": config.get("num_local_experts", 8),
        "experts_per_token": config.get("num_experts_per_tok", 2),
        "expert_size": config["intermediate_size"],
        "normalize_experts": True,
    }


ARCHITECTURE = Architecture(
    read_config,
    experts=ExpertNames(
        "block_sparse_moe.gate",
        "block_sparse_moe.experts.{}.w1",
        "block_sparse_moe.experts.{}.w3",
        "block_sparse_moe.experts.{}.w2",
    ),
)
