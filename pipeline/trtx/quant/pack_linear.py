"""The tensors of one linear, from a unified Hugging Face checkpoint to the engine.

The checkpoint's layout is what ModelOpt's export_hf_checkpoint writes (modelopt.torch.export.quant_utils):

| quant_algo | weight | weight_scale | besides |
|---|---|---|---|
| (none) | [N, K] of the model's dtype | | |
| FP8 | float8_e4m3fn [N, K] | float32 scalar | input_scale float32 scalar |
| W8A8_SQ_PER_CHANNEL | int8 [N, K] | float32 [N] | input_scale scalar, pre_quant_scale [K] |
| W8A16 | int8 [N, K] | float32 [N] | |
| W4A16_AWQ | uint8 [N/2, K] | float32 [N, K/128] | pre_quant_scale [K] where it was not folded into a norm |
| FP8 KV cache | | | k_proj.k_scale, v_proj.v_scale float32 scalars |

A byte of W4A16_AWQ holds row 2i in its low and row 2i+1 in its high nibble, in two's complement.

The engine's layout is in models/linear_layout.py and quant/linear.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.config import DType
from trtx.models.formats import ALGORITHMS
from trtx.models.layout import Shard
from trtx.models.linear_layout import LinearSpec, linear_tensors
from trtx.quant.linear import INT4_OFFSET
from trtx.quant.read_format import FORMAT_FILE

# What a weight of each algorithm is stored as in the checkpoint, by safetensors names.
STORED = {
    "none": ("F32", "BF16", "F16"),
    "fp8": ("F8_E4M3",),
    "int8_sq": ("I8",),
    "int8_wo": ("I8",),
    "int4_wo": ("U8",),
    "int4_awq": ("U8",),
}


def pack_linear(checkpoint: Checkpoint, spec: LinearSpec, dtype: DType, shard: Shard) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one linear in the order of its layout; scales of fused parts stay their own."""
    _check_stored(checkpoint, spec)
    for tensor in linear_tensors(spec, dtype):
        part = tensor.name.rpartition(".")[2]
        yield tensor.name, PACKERS[part](checkpoint, spec, getattr(torch, dtype), shard)


def _pack_weight(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    parts = list(zip(spec.sources, spec.rows, strict=True))
    if spec.algorithm not in ("int4_wo", "int4_awq"):
        weight = torch.cat([checkpoint.read_part(f"{name}.weight", rows, spec.columns) for name, rows in parts])
        return weight.to(dtype) if spec.algorithm == "none" else weight
    group = ALGORITHMS[spec.algorithm].group_size or len(spec.columns)
    return torch.cat([_repack_int4(checkpoint, f"{name}.weight", rows, spec.columns, group) for name, rows in parts])


def _repack_int4(checkpoint: Checkpoint, name: str, rows: range, columns: range, group: int) -> Tensor:
    """Bytes of two rows each, two's complement → bytes of two columns of a group each, offset by 8."""
    if rows.start % 2 or rows.stop % 2:
        raise UsageProblem(f"{name} cannot be cut at rows {rows.start} to {rows.stop}", why="a byte holds two rows")
    pairs = checkpoint.read_part(name, range(rows.start // 2, rows.stop // 2), columns)
    nibbles_NK = torch.stack([pairs & 15, pairs >> 4], 1).flatten(0, 1)
    offset_NK = nibbles_NK ^ INT4_OFFSET  # two's complement of 4 bits, plus 8, is the top bit flipped
    low, high = offset_NK.view(len(rows), -1, 2, group // 2).unbind(2)
    return (low | (high << 4)).flatten(1)


def _pack_weight_scale(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    group = ALGORITHMS[spec.algorithm].group_size
    groups = range(spec.columns.start // group, spec.columns.stop // group) if group else None
    parts = []
    for source, rows in zip(spec.sources, spec.rows, strict=True):
        name = f"{source}.weight_scale"
        if spec.algorithm == "fp8":
            parts.append(checkpoint.read(name).float().reshape(1).expand(len(rows)))
        else:
            parts.append(checkpoint.read_part(name, rows, groups).float())
    return torch.cat(parts)


def _pack_input_scale(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    return _shared(checkpoint, spec, "input_scale").reshape(())


def _pack_pre_quant_scale(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    columns = spec.columns
    if f"{spec.sources[0]}.pre_quant_scale" not in checkpoint:
        # Folded into the linear before this one, where shapes allow it.
        return torch.ones(len(columns))
    return _shared(checkpoint, spec, "pre_quant_scale")[columns.start : columns.stop].clone()


def _pack_bias(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    parts = zip(spec.sources, spec.rows, strict=True)
    bias = torch.cat([checkpoint.read_part(f"{name}.bias", rows) for name, rows in parts]).to(dtype)
    # Ranks that each hold some columns add up their outputs: only one of them may add the bias.
    return torch.zeros_like(bias) if spec.cut == "columns" and shard.tensor_rank > 0 else bias


PACKERS = {
    "weight": _pack_weight,
    "weight_scale": _pack_weight_scale,
    "input_scale": _pack_input_scale,
    "pre_quant_scale": _pack_pre_quant_scale,
    "bias": _pack_bias,
}


def _shared(checkpoint: Checkpoint, spec: LinearSpec, part: str) -> Tensor:
    """A tensor about the input of a linear, which all its fused parts must have alike."""
    first, *others = (checkpoint.read(f"{source}.{part}").float() for source in spec.sources)
    if any(not torch.equal(first, other) for other in others):
        raise VerificationFailed(
            f"{' and '.join(spec.sources)} cannot be fused",
            why=f"their {part} differ although their input is the same",
            fix="export the checkpoint with ModelOpt's export_hf_checkpoint, which makes them equal",
        )
    return first


def _check_stored(checkpoint: Checkpoint, spec: LinearSpec) -> None:
    """The stored type and the tensors must be those of the algorithm, or numbers would be misread."""
    for source in spec.sources:
        stored = checkpoint.dtype(f"{source}.weight")
        if stored not in STORED[spec.algorithm]:
            raise VerificationFailed(
                f"{source}.weight in {checkpoint.folder} is stored as {stored}",
                why=f"{FORMAT_FILE} says that its format is {spec.algorithm}",
                fix="export the checkpoint again",
            )
        scaled = f"{source}.pre_quant_scale" in checkpoint
        if scaled and not any(t.name.endswith("pre_quant_scale") for t in linear_tensors(spec, "float32")):
            raise VerificationFailed(
                f"{source} has a pre_quant_scale that the engine would ignore",
                why="ModelOpt folds the scale of this layer's input into the norm before it",
                fix="export the checkpoint with ModelOpt's export_hf_checkpoint",
            )
