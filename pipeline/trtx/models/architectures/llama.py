"""Llama 1 to 3: grouped-query attention, gated MLP, RMSNorm before each (Touvron et al., arXiv:2302.13971)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_rope, read_sizes


def read_config(config: HfConfig) -> dict[str, Any]:
    """LlamaConfig of transformers."""
    return read_sizes(config) | read_rope(config)


ARCHITECTURE = Architecture(read_config)
