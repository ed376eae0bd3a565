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

from trtx.models.layout import RopeTable


def make_inv_freq(table: RopeTable) -> Tensor:
    """Radians per position of each pair of channels, float32 [channels / 2]; two rows, short and long, for longrope."""
    exponents = torch.arange(0, table.channels, 2, dtype=torch.int64).float() / table.channels
    if table.scaling is None:
        return 1.0 / (table.theta**exponents)
    return _SCALED[table.scaling["rope_type"]](table.theta, exponents, table.scaling)


def attention_factor(scaling: dict[str, Any] | None) -> float:
    """By what cosines and sines are multiplied."""
    return float(scaling.get("attention_factor", 1.0)) if scaling else 1.0


def make_rotation(positions: Tensor, inv_freq: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine times `factor`, float32 [*positions.shape, pairs], of integer positions."""
    angles = positions.float().unsqueeze(-1) * inv_freq
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of x [..., heads, head_dim] by cos and sin [..., 1, pairs]; channel i pairs with
    i + pairs."""
    pairs = cos.shape[-1]
    a, b = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
    return turned if x.shape[-1] == 2 * pairs else torch.cat([turned, x[..., 2 * pairs :]], -1)


def _dynamic(theta: float, exponents: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Dynamic NTK scaling changes nothing up to max_position_embeddings, and engines beyond are refused.

    Beyond, the base grows with the length of the sequence, so every new token would turn all keys before it anew, and
    a cache holds keys that were turned already. transformers leaves these as they are: what it makes of a text then
    depends on how the text was cut into calls, and even on what the model was asked before. With chunked prompts,
    shared prefixes and paused requests an engine would answer by the load it has. vLLM takes one base for all lengths,
    that of `factor` times the trained one, with which short sequences are not transformers' any more.
    """
    return 1.0 / (theta**exponents)


def _linear(theta: float, exponents: Tensor, scaling: dict[str, Any]) -> Tensor:
    scaled: Tensor = 1.0 / (theta**exponents) / scaling["factor"]
    return scaled


def _llama3(theta: float, exponents: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are slowed by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (scaling[key] for key in keys)
    inv_freq = 1.0 / (theta**exponents)
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    is_between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(is_between, between, scaled)


def _yarn(theta: float, exponents: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Channels that turn often are kept, those that turn seldom slowed by `factor`, with a ramp between (Peng et al.,
    YaRN, arXiv:2309.00071, section 3.2)."""
    original, channels = scaling["original_max_position_embeddings"], 2 * len(exponents)

    def channel_of(turns: float) -> float:
        return channels * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel_of(scaling["beta_fast"]), channel_of(scaling["beta_slow"])
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    high += 0.001 * (low == high)
    ramp = ((torch.arange(channels // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept, slowed = 1.0 / theta**exponents, 1.0 / (scaling["factor"] * theta**exponents)
    share_kept = 1 - ramp
    scaled: Tensor = slowed * (1 - share_kept) + kept * share_kept
    return scaled


def _longrope(theta: float, exponents: Tensor, scaling: dict[str, Any]) -> Tensor:
    """A factor for every pair of channels, one set for short and one for long sequences (Ding et al., LongRoPE,
    arXiv:2402.13753)."""
    factors = torch.tensor([scaling["short_factor"], scaling["long_factor"]], dtype=torch.float32)
    return 1.0 / (factors * theta**exponents)


_SCALED: dict[str, Callable[[float, Tensor, dict[str, Any]], Tensor]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
