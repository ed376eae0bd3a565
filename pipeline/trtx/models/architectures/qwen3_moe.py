"""Qwen3-MoE: Qwen3 with a mixture of experts in most layers (arXiv:2505.09388)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, ExpertNames, HfConfig
from trtx.models.architectures.qwen3 import HEAD_NORMS
from trtx.models.read_config import read_rope, read_sizes


def read_config(config: HfConfig) -> dict[str, Any]:
    """Qwen3MoeConfig of transformers; its window, if used, is in every layer."""
    num_layers = config["num_hidden_layers"]
    num_experts = config.get("num_experts") or config.get("num_local_experts") or 0
    every, plain = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    window = (config.get("sliding_window", 4096) or 0) if config.get("use_sliding_window", False) else 0
    return {
        **read_sizes(config),
        **read_rope(config),
        "windows": (window,) * num_layers,
        "num_experts": num_experts,
        "experts_per_token": config.get("num_experts_per_tok", 8),
        "expert_size": config["moe_intermediate_size"],
        "normalize_experts": config.get("norm_topk_prob", False),
        "dense_layers": tuple(
            layer for layer in range(num_layers) if layer in plain or num_experts == 0 or (layer + 1) % every
        ),
    }


ARCHITECTURE = Architecture(
    read_config,
    head_norms=HEAD_NORMS,
    experts=ExpertNames("mlp.gate", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
)
