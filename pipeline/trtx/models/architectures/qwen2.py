"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a window in the upper layers (arXiv:2407.10671)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.read_config import read_rope, read_sizes, read_windows


def read_config(config: HfConfig) -> dict[str, Any]:
    """Qwen2Config of transformers."""
    return read_sizes(config) | read_rope(config) | {"attention_bias": True, "windows": read_qwen_windows(config)}


def read_qwen_windows(config: HfConfig) -> tuple[int, ...]:
    """The layers from `max_window_layers` on have the window, unless `layer_types` says otherwise."""
    layers = range(config["num_hidden_layers"])
    if not config.get("use_sliding_window", False):
        return (0,) * len(layers)
    window, first = config.get("sliding_window", 4096), config.get("max_window_layers", 28)
    kinds = ["sliding_attention" if window is not None and layer >= first else "full_attention" for layer in layers]
    return read_windows(config.get("layer_types") or kinds, window)


ARCHITECTURE = Architecture(read_config, out_has_bias=False)
