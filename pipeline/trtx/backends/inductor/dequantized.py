"""The weights of a quantized checkpoint in float32: the second opinion about what its packed numbers mean.

The arithmetic here is written anew from the formats' descriptions (quant/unpack.py has the table), not shared with the
engine's, so that an error in either shows. Legend: N output rows, C input columns of a linear, Z groups of columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trtx.backends.inductor.dequantized_packed import dequantize_packed
from trtx.models.checkpoint import Checkpoint
from trtx.models.formats import QuantFormat
from trtx.runtime.card import Device

# Tensors that stand beside a quantized weight or a KV cache.
SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "k_scale", "v_scale")
PACKED = ("qweight", "qzeros", "scales", "g_idx")
# Eight sizes, and the sign in the fourth bit.
FP4_NUMBERS = [sign * size for sign in (1, -1) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]


def read_dequantized(
    checkpoint: Checkpoint, quantization: QuantFormat, device: Device = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """All weights of a checkpoint by name in float32, scales multiplied in on a device; one in memory at a time."""
    for name in checkpoint.names:
        module, _, part = name.rpartition(".")
        if part in PACKED and f"{module}.qweight" in checkpoint:
            if part == "qweight":
                yield f"{module}.weight", dequantize_packed(checkpoint, module, quantization)
        elif part == "weight" and f"{module}.weight_scale" in checkpoint:
            # What is made on the way is made there, too.
            with torch.device(device):
                weight = _dequantize_module(checkpoint, module, quantization, device)
            yield name, weight
        elif part not in SCALES:
            yield name, checkpoint.read(name).to(device).float()


def _dequantize_module(checkpoint: Checkpoint, module: str, quantization: QuantFormat, device: Device) -> Tensor:
    def read(part: str) -> Tensor | None:
        name = f"{module}.{part}"
        return checkpoint.read(name).to(device) if name in checkpoint else None

    scale_2, pre_quant_scale = read("weight_scale_2"), read("pre_quant_scale")
    weight, scale = (checkpoint.read(f"{module}.{part}").to(device) for part in ("weight", "weight_scale"))
    numbers = dequantize(weight, scale, torch.ones(()) if scale_2 is None else scale_2, quantization)
    return numbers if pre_quant_scale is None else numbers * pre_quant_scale.float()


def dequantize(weight: Tensor, scale: Tensor, scale_2: Tensor, quantization: QuantFormat) -> Tensor:
    """One weight, float32 [N, C]; `scale_2` is 1 where the format has none.

    W4A8's rounding to fp8, in units of `scale_2`, is left out here as in the engine.
    """
    algorithm, group = quantization.algorithm, quantization.columns_per_scale
    if algorithm == "fp8_block_wo":
        return _dequantize_squares(weight.float(), scale.float())
    if group is None:
        return weight.float() * scale.float().reshape(-1, 1)
    if algorithm in ("nvfp4", "nvfp4_awq"):
        numbers, steps = _fp4_columns(weight), scale.float() * scale_2
    elif algorithm in ("mxfp4", "mxfp8"):
        numbers = _fp4_columns(weight) if algorithm == "mxfp4" else weight.float()
        steps = torch.ldexp(torch.ones(scale.shape), scale.int() - 127)
    else:
        numbers, steps = _int4_rows(weight), scale.float()
    return numbers * steps.repeat_interleave(group, dim=1)


def _int4_rows(weight: Tensor) -> Tensor:
    signed = weight.to(torch.int16)
    low, high = signed % 16, signed // 16
    rows_NC = torch.empty(2 * weight.shape[0], weight.shape[1])
    rows_NC[0::2], rows_NC[1::2] = low - 16 * (low > 7), high - 16 * (high > 7)
    return rows_NC


def _fp4_columns(weight: Tensor) -> Tensor:
    numbers = torch.tensor(FP4_NUMBERS)
    columns_NC = torch.empty(weight.shape[0], 2 * weight.shape[1])
    columns_NC[:, 0::2], columns_NC[:, 1::2] = numbers[weight.long() % 16], numbers[weight.long() // 16]
    return columns_NC


def _dequantize_squares(numbers: Tensor, scale: Tensor) -> Tensor:
    for row in range(0, numbers.shape[0], 128):
        for column in range(0, numbers.shape[1], 128):
            square = scale if scale.numel() == 1 else scale[row // 128, 0, column // 128, 0]
            numbers[row : row + 128, column : column + 128] *= square
    return numbers
