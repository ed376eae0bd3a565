"""The linears of a mixture of experts, in every number format: quant/linear.py of many matrices at once.

Legend: X experts, R rows sorted by expert, N output rows, K input columns. Parameters are those of the formats' linears
with the experts as first dimension; activations are rounded as there, each row with the scale of its expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trtx.kernels import ops
from trtx.models.blocks import make_parameter
from trtx.models.config import DType
from trtx.models.linear_layout import ExpertLinears, expert_tensors
from trtx.quant.rounding import fp8_row_scales, round_mxfp4, round_mxfp8, round_nvfp4, to_fp8


class Experts(nn.Module):
    """One linear of all experts, its parameters declared by its layout; subclasses compute."""

    weight: nn.Parameter
    weight_scale: nn.Parameter
    weight_offset: nn.Parameter | None
    input_scale: nn.Parameter

    def __init__(self, linears: ExpertLinears, dtype: DType) -> None:
        super().__init__()
        self.algorithm = linears.first.algorithm
        self.weight_offset = None
        for tensor in expert_tensors(linears, dtype):
            parameter = make_parameter(torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)))
            setattr(self, tensor.name.rpartition(".")[2], parameter)

    def input_scales(self, routing: ops.Routing) -> Tensor:
        """Of every row, [R, 1]."""
        return self.input_scale[routing.experts_R][:, None]


class PlainExperts(Experts):
    """Weights in the engine's dtype."""

    def forward(self, x_RK: Tensor, routing: ops.Routing) -> Tensor:
        return ops.grouped_linear(x_RK, self.weight, routing.starts_X1)


class DequantizedExperts(Experts):
    """Weights dequantized when they were converted; activations rounded as the format does."""

    def forward(self, x_RK: Tensor, routing: ops.Routing) -> Tensor:
        return ops.grouped_linear(self.round(x_RK, routing).to(x_RK.dtype), self.weight, routing.starts_X1)

    def round(self, x_RK: Tensor, routing: ops.Routing) -> Tensor:
        if self.algorithm == "nvfp4":
            return round_nvfp4(x_RK, self.input_scales(routing)[:, None])
        return round_mxfp4(x_RK) if self.algorithm == "mxfp4" else round_mxfp8(x_RK)


class Fp8Experts(Experts):
    """e4m3 weights and activations; the product itself is computed in the engine's dtype."""

    def forward(self, x_RK: Tensor, routing: ops.Routing) -> Tensor:
        scale_R1 = self.input_scales(routing) if self.algorithm == "fp8" else fp8_row_scales(x_RK)
        rounded_RK = to_fp8(x_RK.float(), scale_R1).to(x_RK.dtype)
        y_RN = ops.grouped_linear_fp8(rounded_RK, self.weight, self.weight_scale, routing.starts_X1).float()
        return (y_RN * scale_R1).to(x_RK.dtype)


class Int8WeightExperts(Experts):
    """int8 weights per row, activations as they are."""

    def forward(self, x_RK: Tensor, routing: ops.Routing) -> Tensor:
        return ops.grouped_linear_int8(x_RK, self.weight, self.weight_scale, routing.starts_X1)


class Int4WeightExperts(Experts):
    """int4 weights with a scale per row and group of columns."""

    def forward(self, x_RK: Tensor, routing: ops.Routing) -> Tensor:
        return ops.grouped_linear_int4(x_RK, self.weight, self.weight_scale, self.weight_offset, routing.starts_X1)


EXPERTS: dict[str, type[Experts]] = {
    "none": PlainExperts,
    "fp8": Fp8Experts,
    "fp8_dynamic": Fp8Experts,
    "int8_wo": Int8WeightExperts,
    "int8_gptq": PlainExperts,
    "int4_wo": Int4WeightExperts,
    "int4_awq": Int4WeightExperts,
    "int4_gptq": Int4WeightExperts,
    "nvfp4": DequantizedExperts,
    "mxfp4": DequantizedExperts,
    "mxfp8": DequantizedExperts,
}


def make_experts(linears: ExpertLinears, dtype: DType) -> Experts:
    """The module of one linear of all experts, by its number format."""
    return EXPERTS[linears.first.algorithm](linears, dtype)
