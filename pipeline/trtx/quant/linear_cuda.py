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
from trtx.quant.linear import Int4WeightLinear, Int8WeightLinear, Linear, PlainLinear
from trtx.quant.rounding import fp8_row_scales, to_fp8


class CudaLinear(Linear):
    """What models/fused.py asks of a linear, by its plain form."""

    @property
    def rounding(self) -> Tensor | None:
        return None

    def multiply(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self(x), None

    def multiply_gated(self, x: Tensor, y_scale: Tensor | None) -> Tensor:
        return ops.gate(self(x), y_scale)


class PlainCudaLinear(CudaLinear, PlainLinear):
    """bf16 weights."""

    def multiply_gated(self, x: Tensor, y_scale: Tensor | None) -> Tensor:
        if self.bias is not None:
            return super().multiply_gated(x, y_scale)
        return ops.gated_linear(x, self.weight, y_scale=y_scale)


class Fp8CudaLinear(CudaLinear):
    """e4m3 weights and activations, multiplied as they are; sums are float32 and leave as bf16."""

    def forward(self, x: Tensor) -> Tensor:
        is_static = self.algorithm == "fp8"
        scale = self.input_scale if is_static else fp8_row_scales(x)
        y = ops.linear_e4m3(to_fp8(x.float(), scale), self.weight, self.input_scale if is_static else None).float()
        if not is_static:
            y = y * scale
        return self.add_bias((y * self.weight_scale).to(x.dtype))

    @property
    def rounding(self) -> Tensor | None:
        return self.input_scale if self.algorithm == "fp8" else None

    def multiply(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.rounding is None:
            return self(x), None
        y = ops.linear_e4m3(x, self.weight, self.rounding)
        # Ranks have the same scales: those of whole rows.
        return (self.meet(y), self.weight_scale) if self.bias is None else (self.meet(self._finish(y)), None)

    def multiply_gated(self, x: Tensor, y_scale: Tensor | None) -> Tensor:
        if self.rounding is None:
            return ops.gate(self(x), y_scale)
        if self.bias is not None:
            return ops.gate(self._finish(ops.linear_e4m3(x, self.weight, self.rounding)), y_scale)
        return ops.gated_linear(x, self.weight, factor=self.rounding, scale=self.weight_scale, y_scale=y_scale)

    def _finish(self, y: Tensor) -> Tensor:
        return self.add_bias((y.float() * self.weight_scale).to(y.dtype))


class Int8WeightCudaLinear(CudaLinear, Int8WeightLinear):
    """int8 weights."""


class Int4WeightCudaLinear(CudaLinear, Int4WeightLinear):
    """int4 weights."""


CUDA_LINEARS: dict[str, type[Linear]] = {
    "none": PlainCudaLinear,
    "fp8": Fp8CudaLinear,
    "fp8_dynamic": Fp8CudaLinear,
    "int8_wo": Int8WeightCudaLinear,
    "int4_wo": Int4WeightCudaLinear,
    "int4_awq": Int4WeightCudaLinear,
}

# What the kernels of trtx/kernels/cuda multiply.
FORMATS = tuple(CUDA_LINEARS)
