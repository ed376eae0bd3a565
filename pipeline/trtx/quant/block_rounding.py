"""ModelOpt's rounding to blocks (NVFP4, MXFP4, MXFP8) on a CPU, for which it has CUDA kernels only.

The arithmetic is quant/rounding.py, which follows those kernels' sources. Held against ModelOpt 0.47's own kernels on
an H200 (ten kinds of 512 × 1024 numbers, float32 and bfloat16): MXFP4 and MXFP8 are the same bit for bit. NVFP4 is the
same up to float32 rounding, 8e-8 of the norm, which here and there decides a tie otherwise, as it does between its CUDA
and its Triton kernel; and groups too small for any scale are zero here and in the CUDA kernel, not in the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from trtx.models.attention import FP8_MAX
from trtx.quant.rounding import FP4_MAX, round_mxfp4, round_mxfp8, round_nvfp4

# Bits of a number and of its exponent, bits of a scale's exponent.
NVFP4, MXFP4, MXFP8 = (4, 2, 4), (4, 2, 8), (8, 4, 8)


@contextmanager
def rounding_on_cpu() -> Iterator[None]:
    """Have ModelOpt round blocks with torch while this lasts."""
    from modelopt.torch.quantization import tensor_quant

    theirs = tensor_quant.dynamic_block_quantize_op
    tensor_quant.dynamic_block_quantize_op = round_blocks
    try:
        yield
    finally:
        tensor_quant.dynamic_block_quantize_op = theirs


def round_blocks(
    inputs: Tensor,
    block_size: int,
    amax: Tensor | None,
    num_bits: int,
    exponent_bits: int,
    scale_num_bits: int,
    scale_exponent_bits: int,
) -> Tensor:
    """The interface of modelopt.torch.quantization.tensor_quant.dynamic_block_quantize_op.

    Raises ValueError for formats other than the three.
    """
    kind = (num_bits, exponent_bits, scale_exponent_bits)
    if kind == NVFP4 and amax is not None and block_size == 16:
        rounded = round_nvfp4(inputs, amax.float().amax() / (FP4_MAX * FP8_MAX))
    elif kind == MXFP4 and block_size == 32:
        rounded = round_mxfp4(inputs)
    elif kind == MXFP8 and block_size == 32:
        rounded = round_mxfp8(inputs)
    else:
        raise ValueError(f"blocks of {block_size} numbers of {num_bits} bits, {exponent_bits} of them exponent")
    return rounded.to(inputs.dtype)
