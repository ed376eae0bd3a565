"""Linear modules of the number formats that GPUs multiply otherwise than processors do. Legend: see linear.py.

| algorithm | y = |
|---|---|
| fp8 | (e4m3(x / input_scale) · Wᵀ) · input_scale · weight_scale[N], products of e4m3 numbers |
| fp8_dynamic | the same with a scale for every token |

The other formats of FORMATS are computed as on a processor, by operators of the same names.
"""

from __future__ import annotations

from torch import Tensor

from trtx.kernels import ops
from trtx.quant.linear import LINEARS, Linear
from trtx.quant.rounding import fp8_row_scales, to_fp8

# What the kernels of trtx/kernels/cuda multiply.
FORMATS = ("none", "fp8", "fp8_dynamic", "int8_wo", "int4_wo", "int4_awq")


class Fp8CudaLinear(Linear):
    """e4m3 weights and activations, multiplied as they are; sums are float32 and leave as bf16."""

    def forward(self, x: Tensor) -> Tensor:
        is_static = self.algorithm == "fp8"
        scale = self.input_scale if is_static else fp8_row_scales(x)
        y = ops.linear_e4m3(to_fp8(x.float(), scale), self.weight, self.input_scale if is_static else None).float()
        if not is_static:
            y = y * scale
        return self.add_bias((y * self.weight_scale).to(x.dtype))


CUDA_LINEARS: dict[str, type[Linear]] = {name: LINEARS[name] for name in FORMATS} | {
    "fp8": Fp8CudaLinear,
    "fp8_dynamic": Fp8CudaLinear,
}
