"""The tensors of one linear of the engine (models/linear_layout.py, quant/linear.py), of those of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trtx.errors import VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.config import DType
from trtx.models.layout import Shard
from trtx.models.linear_layout import ExpertLinears, LinearSpec, expert_tensors, linear_tensors
from trtx.quant.linear import INT4_OFFSET
from trtx.quant.unpack import Part, unpack


def pack_linear(checkpoint: Checkpoint, spec: LinearSpec, dtype: DType, shard: Shard) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one linear in the order of its layout; scales of fused parts stay their own.

    Raises VerificationFailed when the checkpoint's tensors are not those of the format.
    """
    names = [tensor.name.rpartition(".")[2] for tensor in linear_tensors(spec, dtype)]
    _check_nothing_ignored(checkpoint, spec, names)
    parts = [unpack(checkpoint, source, rows, spec) for source, rows in zip(spec.sources, spec.rows, strict=True)]
    for name in names:
        if name in FROM_PARTS:
            tensor = FROM_PARTS[name](parts, spec, getattr(torch, dtype))
        else:
            tensor = FROM_CHECKPOINT[name](checkpoint, spec, getattr(torch, dtype), shard)
        yield f"{spec.name}.{name}", tensor


def pack_experts(
    checkpoint: Checkpoint, linears: ExpertLinears, dtype: DType, shard: Shard
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one linear of all experts. Raises as pack_linear does."""
    whole = {
        tensor.name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        for tensor in expert_tensors(linears, dtype)
    }
    for number, spec in enumerate(linears.experts):
        for name, tensor in pack_linear(checkpoint, spec, dtype, shard):
            whole[name][number] = tensor
    yield from whole.items()


def pack_int4(codes: Tensor, group: int) -> Tensor:
    """Bytes [N, K/2] of numbers -8…7 [N, K]: a byte holds two columns of a group, half a group apart."""
    low, high = (codes + INT4_OFFSET).to(torch.uint8).contiguous().view(len(codes), -1, 2, group // 2).unbind(2)
    return (low | (high << 4)).flatten(1)


def _weight(parts: Sequence[Part], spec: LinearSpec, dtype: torch.dtype) -> Tensor:
    weight = torch.cat([part.weight for part in parts])
    if weight.is_floating_point() and weight.dtype != torch.float8_e4m3fn:
        return weight.to(dtype)
    is_int4 = spec.group_size is not None
    return pack_int4(weight, spec.group_size or 0) if is_int4 else weight


def _weight_scale(parts: Sequence[Part], spec: LinearSpec, dtype: torch.dtype) -> Tensor:
    return torch.cat([part.scale for part in parts if part.scale is not None])


def _weight_offset(parts: Sequence[Part], spec: LinearSpec, dtype: torch.dtype) -> Tensor:
    return torch.cat([part.offset for part in parts if part.offset is not None])


def _input_order(parts: Sequence[Part], spec: LinearSpec, dtype: torch.dtype) -> Tensor:
    orders = [part.order for part in parts if part.order is not None]
    return _alike(spec, "g_idx", orders).to(torch.int32)


def _input_scale(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    scales = [checkpoint.read(f"{source}.input_scale").float() for source in spec.sources]
    return _alike(spec, "input_scale", scales).reshape(())


def _pre_quant_scale(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    columns = spec.columns
    if f"{spec.sources[0]}.pre_quant_scale" not in checkpoint:
        # Folded into the linear before this one, where shapes allow it.
        return torch.ones(len(columns))
    scales = [checkpoint.read(f"{source}.pre_quant_scale").float() for source in spec.sources]
    return _alike(spec, "pre_quant_scale", scales)[columns.start : columns.stop].clone()


def _bias(checkpoint: Checkpoint, spec: LinearSpec, dtype: torch.dtype, shard: Shard) -> Tensor:
    parts = zip(spec.sources, spec.rows, strict=True)
    bias = torch.cat([checkpoint.read_part(f"{name}.bias", rows) for name, rows in parts]).to(dtype)
    # Ranks that each hold some columns add up their outputs: only one of them may add the bias.
    return torch.zeros_like(bias) if spec.cut == "columns" and shard.tensor_rank > 0 else bias


FROM_PARTS: dict[str, Callable[[Sequence[Part], LinearSpec, torch.dtype], Tensor]] = {
    "weight": _weight,
    "weight_scale": _weight_scale,
    "weight_offset": _weight_offset,
    "input_order": _input_order,
}
FROM_CHECKPOINT: dict[str, Callable[[Checkpoint, LinearSpec, torch.dtype, Shard], Tensor]] = {
    "input_scale": _input_scale,
    "pre_quant_scale": _pre_quant_scale,
    "bias": _bias,
}


def _alike(spec: LinearSpec, part: str, tensors: Sequence[Tensor]) -> Tensor:
    """A tensor about the input of a linear, which all its fused parts must have alike."""
    first, *others = tensors
    if any(not torch.equal(first, other) for other in others):
        raise VerificationFailed(
            f"{' and '.join(spec.sources)} cannot be fused",
            why=f"their {part} differ although their input is the same",
            fix="export the checkpoint with ModelOpt's export_hf_checkpoint, which makes them equal",
        )
    return first


def _check_nothing_ignored(checkpoint: Checkpoint, spec: LinearSpec, names: Sequence[str]) -> None:
    """A scale or bias in the checkpoint that the engine has no place for would change the result silently."""
    for source in spec.sources:
        if f"{source}.pre_quant_scale" in checkpoint and "pre_quant_scale" not in names:
            raise VerificationFailed(
                f"{source} has a pre_quant_scale that the engine would ignore",
                why="ModelOpt folds the scale of this layer's input into the norm before it",
                fix="export the checkpoint with ModelOpt's export_hf_checkpoint",
            )
        # GPTQ's tools write biases of zeros for linears that have none.
        if "bias" not in names and f"{source}.bias" in checkpoint and checkpoint.read(f"{source}.bias").any():
            raise VerificationFailed(
                f"{source} has a bias that the engine would ignore",
                why="by config.json the model has none",
                fix="fetch the checkpoint again",
            )
