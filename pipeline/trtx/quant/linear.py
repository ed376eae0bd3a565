"""Linear modules of every number format. Their parameters are the tensors of models/linear_layout.py.

Legend: N output rows, K input columns, Z = K / group size. x stands for activations of the engine's dtype.

| algorithm | y = |
|---|---|
| none | x · Wᵀ |
| fp8 | (e4m3(x / input_scale) · Wᵀ) · input_scale · weight_scale[N], W e4m3 |
| fp8_dynamic | (e4m3(x / s) · Wᵀ) · s · weight_scale[N], s = largest magnitude of the token / 448, W e4m3 |
| int8_sq | (int8(x · pre_quant_scale[K] / input_scale) · Wᵀ) · input_scale · weight_scale[N], W int8, sums in int32 |
| int8_wo | (x · Wᵀ) · weight_scale[N], W int8 |
| int4_wo, int4_awq, int4_gptq | (x · pre_quant_scale[K]) · (W · weight_scale[N, Z] + weight_offset[N, Z])ᵀ, W int4 |
| w4a8_awq | as int4_awq, of x rounded through e4m3 with input_scale |
| nvfp4, nvfp4_awq, mxfp4, mxfp8 | rounded(x · pre_quant_scale[K]) · Wᵀ, W in the engine's dtype; quant/rounding.py |
| fp8_block_wo, int8_gptq | x · Wᵀ, W in the engine's dtype |

Only what a linear has takes part: pre_quant_scale where it was not folded into the norm before, weight_offset where
groups have zero points, and input_order, the columns of x sorted by group, where those of a group are scattered.

Scales are per output row, so that parts with a scale of their own (q, k, v; gate, up) fuse without error. int4 weights
are bytes [N, K/2]: byte j of a group holds its column j in the low nibble and its column j + half a group in the high
one, each a value -8…7 stored plus 8. So both halves widen to vectors as they lie; with neighbours in a byte, widening
takes 2.5 times as long.

Products are operators of the kernel library (trtx.kernels.ops), which read weights in the format they are stored in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trtx.kernels import ops
from trtx.models.blocks import MakeLinear
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat
from trtx.models.layout import Shard, expert_linears, head_linear, layer_linears
from trtx.models.linear_layout import LinearSpec, linear_tensors
from trtx.quant.experts import make_experts
from trtx.quant.rounding import fp8_row_scales, round_fp8, round_mxfp4, round_mxfp8, round_nvfp4, to_fp8

INT4_OFFSET = 8


class Linear(nn.Module):
    """A linear whose parameters are declared by its LinearSpec; subclasses compute."""

    weight: nn.Parameter
    weight_scale: nn.Parameter
    weight_offset: nn.Parameter | None
    input_scale: nn.Parameter
    input_order: nn.Parameter | None
    pre_quant_scale: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, spec: LinearSpec, dtype: DType) -> None:
        super().__init__()
        self.algorithm = spec.algorithm
        self.reduces = False
        self.pre_quant_scale = self.weight_offset = self.input_order = self.bias = None
        for tensor in linear_tensors(spec, dtype):
            data = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
            setattr(self, tensor.name.rpartition(".")[2], nn.Parameter(data, requires_grad=False))

    def smooth(self, x: Tensor) -> Tensor:
        """x in float32, times pre_quant_scale."""
        return x.float() if self.pre_quant_scale is None else x.float() * self.pre_quant_scale

    def add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias

    def meet(self, y: Tensor) -> Tensor:
        """The sum of a product over the ranks that each have some of the columns."""
        return ops.all_reduce(y) if self.reduces else y


class PlainLinear(Linear):
    """Weights in the engine's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class DequantizedLinear(Linear):
    """Weights dequantized when they were converted; activations rounded as the format does."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(self.round(x).to(x.dtype), self.weight, self.bias)

    def round(self, x: Tensor) -> Tensor:
        if self.algorithm in ("nvfp4", "nvfp4_awq"):
            return round_nvfp4(self.smooth(x), self.input_scale)
        return round_mxfp4(x) if self.algorithm == "mxfp4" else round_mxfp8(x)


class Fp8Linear(Linear):
    """e4m3 weights and activations; the product itself is computed in the engine's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.input_scale if self.algorithm == "fp8" else fp8_row_scales(x)
        rounded = to_fp8(x.float(), scale).to(x.dtype)
        y = ops.linear_fp8(rounded, self.weight, self.weight_scale).float()
        return self.add_bias((y * scale).to(x.dtype))


class Int8Linear(Linear):
    """SmoothQuant (Xiao et al., arXiv:2211.10438): int8 weights per row, int8 activations with one static scale."""

    def forward(self, x: Tensor) -> Tensor:
        y = ops.linear_w8a8(x, self.weight, self.weight_scale, self.input_scale, self.pre_quant_scale)
        return self.add_bias(y)


class Int8WeightLinear(Linear):
    """int8 weights per row, activations as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return self.add_bias(ops.linear_int8(x, self.weight, self.weight_scale))


class Int4WeightLinear(Linear):
    """int4 weights with a scale per row and group of columns (AWQ: Lin et al., arXiv:2306.00978; GPTQ: Frantar et al.,
    arXiv:2210.17323)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        return self.add_bias(ops.linear_int4(x, self.weight, self.weight_scale, self.weight_offset))

    def prepare(self, x: Tensor) -> Tensor:
        """What is multiplied with the weights: x scaled, rounded and sorted, in its own dtype."""
        y = self.smooth(x)
        if self.algorithm == "w4a8_awq":
            y = round_fp8(y, self.input_scale)
        return (y if self.input_order is None else y.index_select(-1, self.input_order)).to(x.dtype)


def dequantize_int4(
    packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, offset: Tensor | None = None
) -> Tensor:
    """Float weights [N, K] of packed bytes [N, K/2], scales [N, Z] and, where there are any, offsets [N, Z]."""
    packed_NZh, scale_NZ1 = packed.view(*scale.shape, -1), scale.unsqueeze(-1)
    offset_NZ1 = 0 if offset is None else offset.unsqueeze(-1)
    low, high = (
        ((nibbles.float() - INT4_OFFSET) * scale_NZ1 + offset_NZ1).to(dtype)
        for nibbles in (packed_NZh & 15, packed_NZh >> 4)
    )
    return torch.cat([low, high], -1).flatten(-2)


LINEARS: dict[str, type[Linear]] = {
    "none": PlainLinear,
    "fp8": Fp8Linear,
    "fp8_dynamic": Fp8Linear,
    "fp8_block_wo": PlainLinear,
    "int8_sq": Int8Linear,
    "int8_wo": Int8WeightLinear,
    "int8_gptq": PlainLinear,
    "int4_wo": Int4WeightLinear,
    "int4_awq": Int4WeightLinear,
    "int4_gptq": Int4WeightLinear,
    "w4a8_awq": Int4WeightLinear,
    "nvfp4": DequantizedLinear,
    "nvfp4_awq": DequantizedLinear,
    "mxfp4": DequantizedLinear,
    "mxfp8": DequantizedLinear,
}


def linear_factory(
    config: ModelConfig,
    quantization: QuantFormat,
    dtype: DType,
    shard: Shard,
    linears: Mapping[str, type[Linear]] = LINEARS,
) -> MakeLinear:
    """The `make_linear` of one rank of one model: the module by the number format that the layout gives it.

    What a rank has a part of, its module completes: sums of the ranks' columns, and logits of all their rows.
    """
    specs = {spec.name: spec for layer in shard.layers for spec in layer_linears(config, quantization, shard, layer)}
    specs["lm_head"] = head_linear(config, shard)
    with_experts = [layer for layer in shard.layers if config.has_experts(layer)]
    experts = {each.name: each for layer in with_experts for each in expert_linears(config, quantization, layer)}

    def make_linear(name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        spec = experts[name].first if name in experts else specs[name]
        if (spec.in_features, spec.out_features, spec.bias) != (in_features, out_features, bias):
            raise ValueError(f"{name}: the module wants {in_features} → {out_features}, the layout has {spec}")
        if name in experts:
            return make_experts(experts[name], dtype)
        module = linears[spec.algorithm](spec, dtype)
        if shard.tensor > 1:
            complete(module, spec, shard.tensor)
        return module

    return make_linear


def complete(module: Linear, spec: LinearSpec, ranks: int) -> None:
    """Have a linear give what all ranks' parts of it give together, where others take that."""
    if spec.cut == "columns":
        module.reduces = True
        module.register_forward_hook(lambda _module, _inputs, y: module.meet(y))
    elif spec.name == "lm_head":
        module.register_forward_hook(lambda _module, _inputs, y: ops.all_gather(y, ranks))
