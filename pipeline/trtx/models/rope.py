"""Rotary position embedding: frequencies from a config, and their use.

Source: Su et al., RoFormer, arXiv:2104.09864; the scaled kinds follow transformers.modeling_rope_utils, in the same
float32 operations, so that an engine in float32 rounds like transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trtx.models.config import ROPE_TYPES, ModelConfig


def make_inv_freq(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of channels, float32 [head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    inv_freq: Tensor = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is None:
        return inv_freq
    return _SCALED[config.rope_scaling["rope_type"]](inv_freq, config.rope_scaling)


def make_rotation(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [*positions.shape, head_dim / 2], of integer positions."""
    angles = positions.float().unsqueeze(-1) * inv_freq
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., heads, head_dim] by cos and sin [..., 1, head_dim / 2]; channel i pairs with i + head_dim / 2."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def _linear(inv_freq: Tensor, scaling: dict[str, Any]) -> Tensor:
    scaled: Tensor = inv_freq / scaling["factor"]
    return scaled


def _llama3(inv_freq: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are slowed by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    factor, low, high, original = (scaling[key] for key in ROPE_TYPES["llama3"])
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    is_between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(is_between, between, scaled)


_SCALED: dict[str, Callable[[Tensor, dict[str, Any]], Tensor]] = {"linear": _linear, "llama3": _llama3}
