"""Mistral: Llama with a window over the last tokens in every layer (Jiang et al., arXiv:2310.06825)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_rope, read_sizes


def read_config(config: HfConfig) -> dict[str, Any]:
    """MistralConfig of transformers; null means no window, a missing entry 4096."""
    window = config.get("sliding_window", 4096) or 0
    return read_sizes(config) | read_rope(config) | {"windows": (window,) * config["num_hidden_layers"]}


ARCHITECTURE = Architecture(read_config)
