"""Qwen3: Qwen2 without biases, with RMSNorm over each query and key head (arXiv:2505.09388)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.architectures.qwen2 import read_qwen_windows
from trtx.models.read_config import read_rope, read_sizes

HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def read_config(config: HfConfig) -> dict[str, Any]:
    """Qwen3Config of transformers."""
    sizes = read_sizes({"head_dim": 128, **config})
    return sizes | read_rope(config) | {"windows": read_qwen_windows(config)}


ARCHITECTURE = Architecture(read_config, head_norms=HEAD_NORMS)
