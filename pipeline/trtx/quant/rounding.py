"""What formats make of activations before a product: numbers rounded through a format and widened again.

Legend: x float [..., K]; all functions keep its shape and compute in float32.

| function | formats | scale |
|---|---|---|
| round_fp8 | fp8, w4a8_awq | one, calibrated |
| round_fp8_rows | fp8_dynamic | per token: its largest magnitude / 448 |
| round_nvfp4 | nvfp4, nvfp4_awq | e4m3 per 16 columns, times one that is calibrated |
| round_mxfp4, round_mxfp8 | mxfp4, mxfp8 | a power of two per 32 columns |

e2m1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6; ties go to the even mantissa (OCP Microscaling Formats 1.0, 5.3.3).
ModelOpt takes the smallest power of two that does not saturate the block's largest number, where the OCP document has
one that may (modelopt/torch/kernels/quantization/gemm/tensor_quant_mx.cu: compute_scale_e8m0_NV); so does this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trtx.models.attention import FP8, FP8_MAX

FP4_MAX = 6.0
NVFP4_GROUP, MX_GROUP = 16, 32


def to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale as e4m3 numbers, saturated."""
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def round_fp8(x: Tensor, scale: Tensor) -> Tensor:
    return to_fp8(x.float(), scale).float() * scale


def fp8_row_scales(x: Tensor) -> Tensor:
    """The scale of each row, [..., 1]: its largest magnitude / 448; 1 for a row of zeros."""
    largest = x.float().abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))


def round_fp4(x: Tensor) -> Tensor:
    """The nearest e2m1 numbers, saturated; ties to even."""
    size = x.abs().clamp(max=FP4_MAX)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, x)


def round_nvfp4(x: Tensor, scale: Tensor) -> Tensor:
    """Groups of 16 with an e4m3 scale each, in units of `scale` = largest magnitude / (6 · 448)."""
    groups = x.float().view(*x.shape[:-1], -1, NVFP4_GROUP)
    largest = groups.abs().amax(-1, keepdim=True)
    steps = to_fp8(largest / FP4_MAX, scale).float() * scale
    # A group too small for the format is zero.
    return torch.where(steps > 0, round_fp4(groups / torch.where(steps > 0, steps, 1.0)) * steps, 0.0).flatten(-2)


def round_mxfp4(x: Tensor) -> Tensor:
    groups, steps = _mx_groups(x, FP4_MAX)
    return (round_fp4(groups / steps) * steps).flatten(-2)


def round_mxfp8(x: Tensor) -> Tensor:
    groups, steps = _mx_groups(x, FP8_MAX)
    return (to_fp8(groups, steps).float() * steps).flatten(-2)


def _mx_groups(x: Tensor, largest_number: float) -> tuple[Tensor, Tensor]:
    """x [..., Z, 32] and the power of two of each group, [..., Z, 1]."""
    groups = x.float().view(*x.shape[:-1], -1, MX_GROUP)
    return groups, power_of_two_above(groups.abs().amax(-1, keepdim=True) / largest_number)


def power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two that is not less than x, from 2^-126 to 2^127; read from the float's own exponent."""
    bits = x.clamp(min=2.0**-126).view(torch.int32)
    exponents = (bits >> 23) + ((bits & 0x7FFFFF) > 0).int()
    return (exponents.clamp(max=254) << 23).view(torch.float32)
