"""Reads one linear of a checkpoint into plain numbers, whatever way the checkpoint packs them.

ModelOpt's export_hf_checkpoint (modelopt.torch.export.quant_utils) and compressed-tensors' FP8:

| algorithm | weight | weight_scale | besides |
|---|---|---|---|
| none | [N, K] of the model's dtype | | |
| fp8, fp8_dynamic | e4m3 [N, K] | float32 scalar, [N] or [N, 1] | input_scale scalar, for fp8 |
| fp8_block_wo | e4m3 [N, K] | float32 [N/128, 1, K/128, 1], ends rounded up, a scalar for one block | |
| int8_sq | int8 [N, K] | float32 [N] | input_scale scalar, pre_quant_scale [K] |
| int8_wo | int8 [N, K] | float32 [N] | |
| int4_wo, int4_awq, w4a8_awq | uint8 [N/2, K] | float32 [N, Z] | pre_quant_scale [K]; input_scale, for w4a8 |
| nvfp4, nvfp4_awq | uint8 [N, K/2] | e4m3 [N, K/16] | weight_scale_2, input_scale scalars; pre_quant_scale |
| mxfp4 | uint8 [N, K/2] | uint8 [N, K/32] | |
| mxfp8 | e4m3 [N, K] | uint8 [N, K/32] | |

AWQ's pre_quant_scale is there where no norm could take it. A byte of int4 holds row 2i in its low and row 2i+1 in its
high nibble, in two's complement; a byte of fp4 column 2j in its low and column 2j+1 in its high nibble, sign and e2m1.
uint8 scales are exponents plus 127. W4A8 rounds the dequantized weight through e4m3 once more, in units of
weight_scale_2; that second rounding is left out here.

AutoAWQ "gemm" and GPTQ pack b-bit codes q into int32, the first in the lowest bits; weight = (q - z) · scale:

| packing | qweight | qzeros | scales | besides |
|---|---|---|---|---|
| awq | [K, N/8], columns of W in the order 0 2 4 6 1 3 5 7 | [Z, N/8], same order | [Z, N] | |
| gptq, gptq_v2 | [K·b/32, N] | [Z, N·b/32]; gptq stores z - 1 | [Z, N] | g_idx [K]: the group of each column of W |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.formats import FP8_BLOCK, QuantFormat
from trtx.models.linear_layout import LinearSpec

# Magnitudes of e2m1 by their three bits; the fourth is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Where AutoAWQ puts the columns of W in an int32: position i, from the lowest bits, has column AWQ_ORDER[i].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# What a weight of each algorithm is stored as, by safetensors names.
STORED = {
    "none": ("F32", "BF16", "F16"),
    "fp8": ("F8_E4M3",),
    "fp8_dynamic": ("F8_E4M3",),
    "fp8_block_wo": ("F8_E4M3",),
    "int8_sq": ("I8",),
    "int8_wo": ("I8",),
    "int4_wo": ("U8",),
    "int4_awq": ("U8",),
    "w4a8_awq": ("U8",),
    "nvfp4": ("U8",),
    "nvfp4_awq": ("U8",),
    "mxfp4": ("U8",),
    "mxfp8": ("F8_E4M3",),
}


@dataclass(frozen=True)
class Part:
    """Some rows and columns of one linear of a checkpoint.

    `weight` [n, k] has the stored numbers: floats where the engine keeps none of the format's own, e4m3 numbers, or
    integers, int4 ones from -8 to 7. `scale` and `offset`, [n] or [n, z] float32, make floats of them:
    weight · scale + offset.
    `order` int64 [k] sorts the columns by group; those of `weight` are sorted already.
    """

    weight: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    order: Tensor | None = None


def unpack(checkpoint: Checkpoint, source: str, rows: range, spec: LinearSpec) -> Part:
    """Rows of one source of a linear.

    Raises VerificationFailed when its tensors are not those of the format, UsageProblem when it cannot be cut there.
    """
    if spec.quantization.packing == "plain" or spec.algorithm == "none":
        check_stored(checkpoint, source, STORED[spec.algorithm], "weight")
        return unpack_plain(checkpoint, source, rows, spec)
    check_stored(checkpoint, source, ("I32",), "qweight")
    if spec.quantization.packing == "awq":
        return unpack_awq(checkpoint, source, rows, spec)
    return unpack_gptq(checkpoint, source, rows, spec)


def check_stored(checkpoint: Checkpoint, source: str, allowed: tuple[str, ...], part: str) -> None:
    stored = checkpoint.dtype(f"{source}.{part}")
    if stored not in allowed:
        raise VerificationFailed(
            f"{source}.{part} in {checkpoint.folder} is stored as {stored}",
            why=f"by its config files it should be {' or '.join(allowed)}",
            fix="fetch or export the checkpoint again",
        )


def unpack_plain(checkpoint: Checkpoint, source: str, rows: range, spec: LinearSpec) -> Part:
    """A linear of ModelOpt's or compressed-tensors' export."""
    name, columns, algorithm = f"{source}.weight", spec.columns, spec.algorithm
    if algorithm == "none":
        return Part(checkpoint.read_part(name, rows, columns))
    if algorithm in ("nvfp4", "nvfp4_awq", "mxfp4", "mxfp8"):
        return Part(_read_blocks(checkpoint, source, rows, columns, algorithm))
    if algorithm == "fp8_block_wo":
        return Part(_read_squares(checkpoint, source, rows, columns))
    if spec.group_size is not None:
        codes = _read_int4_rows(checkpoint, name, rows, columns)
        return Part(codes, _read_groups(checkpoint, source, rows, columns, spec.group_size))
    scale = checkpoint.read(f"{source}.weight_scale").float().flatten()
    scale = scale.expand(len(rows)) if scale.numel() == 1 else scale[rows.start : rows.stop]
    return Part(checkpoint.read_part(name, rows, columns), scale)


def unpack_awq(checkpoint: Checkpoint, source: str, rows: range, spec: LinearSpec) -> Part:
    """A linear of AutoAWQ's "gemm" packing; rows of W are columns there."""
    group = spec.group_size or spec.in_features
    if rows.start % 8 or rows.stop % 8:
        raise UsageProblem(f"{source} cannot be cut at rows {rows.start} to {rows.stop}", why="an int32 holds 8 rows")
    packed = range(rows.start // 8, rows.stop // 8)
    groups = range(spec.columns.start // group, spec.columns.stop // group)
    codes = _unpack_awq(checkpoint.read_part(f"{source}.qweight", spec.columns, packed))
    scale = checkpoint.read_part(f"{source}.scales", groups, rows).float()
    if not spec.quantization.zero_points:
        return Part((codes - 8).t(), scale.t())
    zeros = _unpack_awq(checkpoint.read_part(f"{source}.qzeros", groups, packed))
    return Part((codes - 8).t(), scale.t(), ((8 - zeros) * scale).t())


def unpack_gptq(checkpoint: Checkpoint, source: str, rows: range, spec: LinearSpec) -> Part:
    """A linear of GPTQ's packing; rows of W are columns there."""
    bits = 8 if spec.algorithm.startswith("int8") else 4
    middle, columns = 1 << (bits - 1), spec.columns
    all_rows = range(checkpoint.shape(f"{source}.scales")[1])
    num_columns = checkpoint.shape(f"{source}.qweight")[0] * 32 // bits
    codes = _unpack_bits(checkpoint.read(f"{source}.qweight").t(), bits)[rows.start : rows.stop]
    scale = checkpoint.read(f"{source}.scales").float().t()[rows.start : rows.stop]
    zeros = _read_gptq_zeros(checkpoint, source, spec.quantization, bits)[rows.start : rows.stop]
    group_of = _read_gptq_groups(checkpoint, source, spec, num_columns)
    if len(all_rows) % (32 // bits) or columns.stop > num_columns:
        raise VerificationFailed(
            f"{source} in {checkpoint.folder} has the wrong shape",
            why=f"it holds {len(all_rows)} × {num_columns} numbers and config.json asks for columns to {columns.stop}",
            fix="fetch the checkpoint again",
        )
    if not spec.quantization.zero_points and not bool((zeros == middle).all()):
        raise VerificationFailed(
            f"{source}.qzeros in {checkpoint.folder} has zero points other than {middle}",
            why="quantization_config of config.json says sym: true",
            fix="fetch the checkpoint again",
        )
    if spec.algorithm == "int8_gptq":
        weight = (codes - zeros[:, group_of]) * scale[:, group_of]
        return Part(weight[:, columns.start : columns.stop])
    if spec.algorithm == "int8_wo":
        return Part((codes - middle)[:, columns.start : columns.stop].to(torch.int8), scale[:, 0])
    offset = (middle - zeros) * scale if spec.quantization.zero_points else None
    if spec.quantization.reordered:
        if len(columns) != num_columns:
            raise UsageProblem(
                f"{source} cannot be cut", why="the columns of its groups are scattered", fix="use tensor parallelism 1"
            )
        order = group_of.argsort(stable=True)
        return Part((codes - middle)[:, order], scale, offset, order)
    size = spec.group_size or num_columns
    groups = slice(columns.start // size, columns.stop // size)
    part = (codes - middle)[:, columns.start : columns.stop]
    return Part(part, scale[:, groups], None if offset is None else offset[:, groups])


def _read_int4_rows(checkpoint: Checkpoint, name: str, rows: range, columns: range) -> Tensor:
    """Numbers -8…7 [n, k] of bytes that hold two rows each, in two's complement."""
    if rows.start % 2 or rows.stop % 2:
        raise UsageProblem(f"{name} cannot be cut at rows {rows.start} to {rows.stop}", why="a byte holds two rows")
    pairs = checkpoint.read_part(name, range(rows.start // 2, rows.stop // 2), columns)
    nibbles = torch.stack([pairs & 15, pairs >> 4], 1).flatten(0, 1)
    return (nibbles ^ 8).to(torch.int8) - 8


def _read_groups(checkpoint: Checkpoint, source: str, rows: range, columns: range, group: int) -> Tensor:
    groups = range(columns.start // group, columns.stop // group)
    return checkpoint.read_part(f"{source}.weight_scale", rows, groups).float()


def _read_blocks(checkpoint: Checkpoint, source: str, rows: range, columns: range, algorithm: str) -> Tensor:
    """Float weights [n, k] of fp4 or fp8 numbers with a scale per group of columns."""
    name, size = f"{source}.weight", 16 if algorithm.startswith("nvfp4") else 32
    if columns.start % size or columns.stop % size:
        raise UsageProblem(f"{source} cannot be cut", why=f"{size} of its columns share a scale")
    groups = range(columns.start // size, columns.stop // size)
    scale = checkpoint.read_part(f"{source}.weight_scale", rows, groups)
    if algorithm == "mxfp8":
        numbers = checkpoint.read_part(name, rows, columns).float()
    else:
        pairs = checkpoint.read_part(name, rows, range(columns.start // 2, columns.stop // 2))
        codes = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1).int()
        numbers = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
    if algorithm.startswith("nvfp4"):
        steps = scale.float() * checkpoint.read(f"{source}.weight_scale_2").float()
    else:
        steps = torch.exp2(scale.float() - 127)
    return (numbers.view(*steps.shape, size) * steps.unsqueeze(-1)).flatten(1)


def _read_squares(checkpoint: Checkpoint, source: str, rows: range, columns: range) -> Tensor:
    """Float weights [n, k] of e4m3 numbers with a scale per 128 rows and 128 columns."""
    numbers = checkpoint.read_part(f"{source}.weight", rows, columns).float()
    num_rows, num_columns = checkpoint.shape(f"{source}.weight")
    scale = checkpoint.read(f"{source}.weight_scale").float()
    squares = scale.reshape(-(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))
    row_blocks = torch.arange(rows.start, rows.stop) // FP8_BLOCK
    column_blocks = torch.arange(columns.start, columns.stop) // FP8_BLOCK
    return numbers * squares[row_blocks][:, column_blocks]


def _unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Codes [a, b · 32/bits] int16 of int32 [a, b], the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (packed.contiguous().unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1).to(torch.int16)


def _unpack_awq(packed: Tensor) -> Tensor:
    codes = _unpack_bits(packed, 4).view(*packed.shape, 8)
    return codes[:, :, torch.tensor(AWQ_ORDER).argsort()].flatten(1)


def _read_gptq_zeros(checkpoint: Checkpoint, source: str, quantization: QuantFormat, bits: int) -> Tensor:
    """Zero points [N, Z]. The first checkpoint format stores them less one, within the bits: zero as all ones."""
    zeros = _unpack_bits(checkpoint.read(f"{source}.qzeros"), bits).t()
    return (zeros + 1) & ((1 << bits) - 1) if quantization.packing == "gptq" else zeros


def _read_gptq_groups(checkpoint: Checkpoint, source: str, spec: LinearSpec, num_columns: int) -> Tensor:
    """The group of each column, int64 [K]; groups in a row where there is no g_idx."""
    group = spec.quantization.columns_per_scale or num_columns
    in_a_row = torch.arange(num_columns) // (num_columns if group < 0 else group)
    if f"{source}.g_idx" not in checkpoint:
        return in_a_row
    found = checkpoint.read(f"{source}.g_idx").long()
    num_groups = checkpoint.shape(f"{source}.scales")[0]
    counted = torch.bincount(found, minlength=num_groups) if bool((found >= 0).all()) else torch.zeros(0)
    whole = len(found) == num_columns and len(counted) == num_groups and len(set(counted.tolist())) == 1
    if not whole or not (spec.quantization.reordered or spec.algorithm == "int8_gptq" or torch.equal(found, in_a_row)):
        raise VerificationFailed(
            f"{source}.g_idx in {checkpoint.folder} does not divide the columns into groups as config.json says",
            why="quantization_config has desc_act: false" if whole else "its groups differ in size",
            fix="fetch the checkpoint again",
        )
    return found


def read_kv_scale(checkpoint: Checkpoint, attention: str, which: str) -> Tensor:
    """The float32 scalar of the key or value cache: ModelOpt names it k_proj.k_scale, compressed-tensors k_scale."""
    own = f"{attention}.{which}_scale"
    return checkpoint.read(own if own in checkpoint else f"{attention}.{which}_proj.{which}_scale").float().reshape(())
