"""Gemma 3, text: Gemma 2 without caps on scores, with RMSNorm over query and key heads, five layers with a window and a
RoPE of their own before each without (arXiv:2503.19786)."""

from __future__ import annotations

from typing import Any

from trtx.models.architecture import Architecture, HfConfig
from trtx.models.architectures.gemma2 import LAYER_NORMS, read_gemma
from trtx.models.architectures.qwen3 import HEAD_NORMS
from trtx.models.read_config import read_scaling, read_windows


def read_config(config: HfConfig) -> dict[str, Any]:
    """Gemma3TextConfig of transformers. transformers 4 has no `layer_types` in old files, 5 nests the two RoPEs."""
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    kinds = [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
        for layer in range(config["num_hidden_layers"])
    ]
    rope = config.get("rope_parameters") or {}
    whole, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    return {
        **read_gemma(config),
        "windows": read_windows(config.get("layer_types") or kinds, config.get("sliding_window", 4096)),
        "rope_theta": whole.get("rope_theta") or config.get("rope_theta") or 1e6,
        "rope_scaling": read_scaling(config, config.get("rope_scaling") or whole),
        "local_rope_theta": local.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0,
        "local_rope_scaling": read_scaling(config, local),
        "logit_softcap": config.get("final_logit_softcapping") or 0.0,
    }


ARCHITECTURE = Architecture(read_config, norm="rms_plus_one", layer_norms=LAYER_NORMS, head_norms=HEAD_NORMS)
