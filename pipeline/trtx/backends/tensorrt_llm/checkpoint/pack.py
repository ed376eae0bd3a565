"""Matrices of a Hugging Face folder as the tensors that TensorRT-LLM stores of them (layout.py has the table).

Shape suffixes: N outputs, K inputs, G groups of inputs, E experts.

What is not merely copied:

- FP8: q, k and v have one scale there, the largest of theirs; the others' numbers are rounded to e4m3 once more, in
  steps of that scale. So are the gate and up matrices of an expert. ModelOpt's own export has the unrounded weights.
- AWQ folds the input scales of q, k, v and of gate and up into the norm before them, but TensorRT-LLM wants one of
  every matrix: ones.
- Weight-only: integers are multiplied out, because trtllm-build packs plain numbers (formats.py). Its own rounding, to
  128 steps of the largest number of a row, is not ModelOpt's to 127: it moves numbers by up to half a step, the largest
  positive one of a row by a whole one, and bfloat16 by up to half a step more. An unquantized folder is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.blocks import Block
from trtx.backends.tensorrt_llm.checkpoint.formats import GROUPED, NVFP4_GROUP, CheckpointFormat
from trtx.errors import VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.config import DType
from trtx.models.formats import QuantFormat
from trtx.models.linear_layout import LinearSpec
from trtx.quant.unpack import Part, unpack

FP8, MAX_FP8 = torch.float8_e4m3fn, 448.0
MAX_INT4 = 7


@dataclass(frozen=True)
class Source:
    """An open folder, the format of its numbers, the format to write, and the dtype of what is not quantized."""

    checkpoint: Checkpoint
    quantization: QuantFormat
    form: CheckpointFormat
    dtype: DType

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def pack_linear(source: Source, block: Block, form: CheckpointFormat) -> dict[str, Tensor]:
    """The tensors of one matrix of the engine, by suffix and without bias; `form` is the module's own.

    Raises VerificationFailed when the folder's tensors are not those of its format.
    """
    _check_nothing_ignored(source, block, form)
    match form.quant_algo:
        case "FP8":
            weight, scale = _fuse_fp8(source, block)
            scales = {"weights_scaling_factor": scale, "activation_scaling_factor": _input_scale(source, block)}
            return {"weight": weight, **scales}
        case "FP8_PER_CHANNEL_PER_TOKEN":
            weight, scale = _stack(source, block)
            return {"weight": weight, "per_channel_scale": scale}
        case "W8A8_SQ_PER_CHANNEL":
            weight, scale = _stack(source, block)
            return {
                "weight": weight,
                "weights_scaling_factor": scale,
                "activation_scaling_factor": _input_scale(source, block),
                "prequant_scaling_factor": _pre_quant_scale(source, block),
            }
        case "NVFP4":
            return _copy_nvfp4(source, block)
        case algo if algo in GROUPED:
            return _pack_int4(source, block, form)
    return {"weight": read_floats(source, block)}


def pack_bias(source: Source, block: Block) -> Tensor:
    """The bias [N] of a matrix of the engine."""
    return _join([source.checkpoint.read_part(f"{name}.bias", rows) for name, rows in block.pairs]).to(
        source.torch_dtype
    )


def pack_experts(source: Source, blocks: Sequence[Block], form: CheckpointFormat) -> dict[str, Tensor]:
    """The tensors [E, N, K] of the experts' matrices, each given as a block."""
    shape = (len(blocks), blocks[0].num_rows, len(blocks[0].columns))
    if form.quant_algo != "FP8":
        weight = torch.empty(shape, dtype=source.torch_dtype)
        for number, block in enumerate(blocks):
            weight[number] = read_floats(source, block)
        return {"weight": weight}
    weight, scales = torch.empty(shape, dtype=FP8), torch.empty(len(blocks), 1)
    for number, block in enumerate(blocks):
        weight[number], scales[number] = _fuse_fp8(source, block)
    return {"weight": weight, "weights_scaling_factor": scales}


def largest_input_scale(source: Source, names: Sequence[str]) -> Tensor:
    """The one scale [1] of the inputs of all experts; experts that calibration never met have none.

    Raises VerificationFailed when no expert has one.
    """
    parts = [f"{name}.input_scale" for name in names if f"{name}.input_scale" in source.checkpoint]
    if not parts:
        source.checkpoint.read(f"{names[0]}.input_scale")
    return torch.stack([source.checkpoint.read(part).float().reshape(()) for part in parts]).max().reshape(1)


def read_floats(source: Source, block: Block) -> Tensor:
    """The numbers [N, K] of a block in the dtype, whatever the folder stores."""
    return _join([_dequantize(part).to(source.torch_dtype) for part in _unpack(source, block)])


def _unpack(source: Source, block: Block) -> list[Part]:
    """The folder's own numbers; floats of a folder or a module that is not quantized."""
    found = []
    for name, rows in block.pairs:
        is_quantized = any(f"{name}.{part}" in source.checkpoint for part in ("weight_scale", "qweight"))
        own = source.quantization if is_quantized else QuantFormat()
        spec = LinearSpec(name, (name,), (rows,), block.columns, block.cut, False, own)
        found.append(unpack(source.checkpoint, name, rows, spec))
    return found


def _dequantize(part: Part) -> Tensor:
    """Floats [N, K] of one part."""
    if part.scale is None:
        return part.weight
    scale = part.scale if part.scale.dim() == 2 else part.scale[:, None]
    numbers = part.weight.float().view(*scale.shape, -1)
    return (numbers * scale[..., None]).flatten(1)


def _stack(source: Source, block: Block) -> tuple[Tensor, Tensor]:
    """Stored numbers [N, K] and their scales, float32 [N] or [N, G]."""
    parts = _unpack(source, block)
    scales = [part.scale for part in parts if part.scale is not None]
    return _join([part.weight for part in parts]), _join(scales).float()


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """One below the other; a single one stays where it is, in the mapped file."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _fuse_fp8(source: Source, block: Block) -> tuple[Tensor, Tensor]:
    """Numbers e4m3 [N, K] and one scale [1] for all, whatever rows of the matrices the rank has."""
    scales = [source.checkpoint.read(f"{name}.weight_scale").float() for name in block.names]
    largest = torch.stack([scale.max() for scale in scales]).max()
    found = []
    for part in _unpack(source, block):
        assert part.scale is not None  # noqa: S101 - FP8 numbers have one
        same = bool((part.scale == largest).all())
        steps = part.weight if same else part.weight.float() * part.scale[:, None] / largest
        found.append(steps if same else steps.clamp(-MAX_FP8, MAX_FP8).to(FP8))
    # torch cannot join e4m3 tensors; their bytes it can.
    joined = _join([part.view(torch.uint8) for part in found]).view(FP8)
    return joined, largest.reshape(1)


def _pack_int4(source: Source, block: Block, form: CheckpointFormat) -> dict[str, Tensor]:
    if source.quantization.algorithm == "none":
        codes, scale = _round_int4(read_floats(source, block).float(), form.group_size)
        weight = pack_rows(codes)
    elif source.quantization.packing == "plain":
        weight, scale = _copy_int4(source, block, form.group_size)
    else:
        codes, scale = _stack(source, block)
        weight = pack_rows(codes)
    found = {"weight": weight, "weights_scaling_factor": scale}
    if form.pre_quant_scale:
        found["prequant_scaling_factor"] = _pre_quant_scale(source, block)
    if form.quant_algo == "W4A8_AWQ":
        second = [source.checkpoint.read(f"{name}.weight_scale_2").float().reshape(()) for name in block.names]
        found["weights_scaling_factor_2"] = torch.stack(second).max().reshape(1)
        found["activation_scaling_factor"] = _input_scale(source, block)
    return found


def _copy_int4(source: Source, block: Block, group: int) -> tuple[Tensor, Tensor]:
    """Bytes int8 [N/2, K] and scales float32 [N, G]: ModelOpt's folders have the bytes of its TensorRT-LLM export."""
    read, columns = source.checkpoint.read_part, block.columns
    groups = range(columns.start // group, columns.stop // group)
    weights = [read(f"{name}.weight", _halves(rows), columns) for name, rows in block.pairs]
    scales = [read(f"{name}.weight_scale", rows, groups).float() for name, rows in block.pairs]
    return _join(weights).view(torch.int8), _join(scales)


def _halves(items: range) -> range:
    return range(items.start // 2, items.stop // 2)


def _round_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [N, K] from -8 to 7 and scales float32 [N, G]: the largest of a group becomes 7, as in ModelOpt."""
    grouped = weight.view(len(weight), -1, group)
    scale = grouped.abs().amax(-1) / MAX_INT4
    steps = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (grouped / steps[..., None]).round().clamp(-8, MAX_INT4).to(torch.int8).view_as(weight), scale


def pack_rows(codes: Tensor) -> Tensor:
    """Bytes int8 [N/2, K] of codes -8…7 [N, K]: row 2i in the low, row 2i + 1 in the high four bits."""
    small = codes.to(torch.int8)
    return (small[0::2] & 15) | (small[1::2] << 4)


def _copy_nvfp4(source: Source, block: Block) -> dict[str, Tensor]:
    read, columns = source.checkpoint.read_part, block.columns
    pairs = _halves(columns)
    groups = range(columns.start // NVFP4_GROUP, columns.stop // NVFP4_GROUP)
    scales = [read(f"{name}.weight_scale", rows, groups).view(torch.uint8) for name, rows in block.pairs]
    return {
        "weight": _join([read(f"{name}.weight", rows, pairs) for name, rows in block.pairs]),
        "weights_scaling_factor": _join(scales).view(FP8),
        "weights_scaling_factor_2": _alike(source, block, "weight_scale_2").reshape(()),
        "activation_scaling_factor": _alike(source, block, "input_scale").reshape(()),
    }


def _input_scale(source: Source, block: Block) -> Tensor:
    return _alike(source, block, "input_scale").reshape(1)


def _pre_quant_scale(source: Source, block: Block) -> Tensor:
    if f"{block.names[0]}.pre_quant_scale" not in source.checkpoint:
        return torch.ones(len(block.columns), dtype=source.torch_dtype)
    whole = _alike(source, block, "pre_quant_scale")
    return whole[block.columns.start : block.columns.stop].to(source.torch_dtype)


def _alike(source: Source, block: Block, part: str) -> Tensor:
    """A tensor about the input of fused matrices, float32, which all of them must have alike."""
    first, *others = (source.checkpoint.read(f"{name}.{part}").float() for name in block.names)
    if any(not torch.equal(first, other) for other in others):
        raise VerificationFailed(
            f"{' and '.join(block.names)} cannot be fused",
            why=f"their {part} differ although they share it in TensorRT-LLM",
            fix="export the folder with ModelOpt's export_hf_checkpoint, which makes them equal",
        )
    return first


def _check_nothing_ignored(source: Source, block: Block, form: CheckpointFormat) -> None:
    """A scale that the format has no place for would change the result silently."""
    if form.pre_quant_scale or form.quant_algo == "W8A8_SQ_PER_CHANNEL":
        return
    for name in block.names:
        if f"{name}.pre_quant_scale" in source.checkpoint:
            raise VerificationFailed(
                f"{name} has a pre_quant_scale that {form.quant_algo or 'an unquantized checkpoint'} has no place for",
                why="the folder's config files name another format",
                fix="export the folder again with ModelOpt's export_hf_checkpoint",
            )
