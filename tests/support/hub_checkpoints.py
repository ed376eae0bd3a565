"""Checkpoints as AutoAWQ and GPTQ's tools write them, packed anew from the public descriptions of the two formats.

AutoAWQ: awq/modules/linear/gemm.py (`from_linear`) of https://github.com/casper-hansen/AutoAWQ; GPTQ: `pack` of
auto_gptq/nn_modules/qlinear/qlinear_cuda.py of https://github.com/AutoGPTQ/AutoGPTQ, and for gptq_v2
https://github.com/ModelCloud/GPTQModel. What the format is was taken from there, and no code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.checkpoints import Unified, make_llama
from torch import Tensor

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
# Weight [N, K] → the tensors of its linear, and the float weight that they stand for.
Pack = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def make_packed(folder: Path, config: dict[str, Any], pack: Pack, **overrides: Any) -> Unified:
    """A random Llama whose linears are packed by `pack`, with this `quantization_config`."""
    model = make_llama(folder, **overrides)
    tensors: dict[str, Tensor] = {}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name, weight in weights.items():
        module, _, part = name.rpartition(".")
        if part != "weight" or not module.endswith("_proj"):
            tensors[name] = weight.clone()
            continue
        packed, weights[name] = pack(weight)
        tensors |= {f"{module}.{key}": value.contiguous() for key, value in packed.items()}
    save_file(tensors, folder / "model.safetensors")
    write_config(folder, config)
    return Unified(folder, tensors, weights)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"quantization_config": config}))


def round_groups(weight: Tensor, group_of: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [K, N], scales [Z, N] in float16 as the tools store them, and zero points [Z, N]."""
    columns = weight.t()
    count, highest = int(group_of.max()) + 1, (1 << bits) - 1
    scales, zeros = torch.empty(count, columns.shape[1]), torch.empty(count, columns.shape[1], dtype=torch.int64)
    for group in range(count):
        part = columns[group_of == group]
        low, high = part.amin(0).clamp(max=0), part.amax(0).clamp(min=0)
        if symmetric:
            scales[group], zeros[group] = 2 * part.abs().amax(0) / highest, 1 << (bits - 1)
        else:
            scales[group] = (high - low) / highest
            zeros[group] = (-low / scales[group]).round().long().clamp(0, highest)
    scales = scales.half()
    codes = (columns / scales[group_of].float()).round().long() + zeros[group_of]
    return codes.clamp(0, highest), scales, zeros


def make_awq_pack(group: int = 128) -> Pack:
    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        group_of = torch.arange(weight.shape[1]) // group
        codes, scales, zeros = round_groups(weight, group_of, 4, symmetric=False)
        value = (codes - zeros[group_of]).float() * scales[group_of].float()
        packed = {"qweight": _pack_columns(codes, AWQ_COLUMNS), "qzeros": _pack_columns(zeros, AWQ_COLUMNS)}
        return packed | {"scales": scales}, value.t()

    return pack


def make_gptq_pack(
    *, bits: int = 4, group: int = 128, symmetric: bool = True, act_order: bool = False, stored_zero: int = -1
) -> Pack:
    """`group` -1 is whole rows; `stored_zero` is added to zero points, -1 in the first checkpoint format."""

    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        group_of = torch.arange(columns) // (columns if group == -1 else group)
        if act_order:
            group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        codes, scales, zeros = round_groups(weight, group_of, bits, symmetric)
        value = (codes - zeros[group_of]).float() * scales[group_of].float()
        in_order = tuple(range(32 // bits))
        packed = {
            "qweight": _pack_columns(codes.t(), in_order).t(),
            "qzeros": _pack_columns((zeros + stored_zero) % (1 << bits), in_order),
            "scales": scales,
            "g_idx": group_of.to(torch.int32),
        }
        return packed, value.t()

    return pack


def _pack_columns(codes: Tensor, order: tuple[int, ...]) -> Tensor:
    """int32 [a, b / len(order)] of codes [a, b]: place i, from the lowest bits, takes column order[i] of its word."""
    bits = 32 // len(order)
    words = torch.zeros(codes.shape[0], codes.shape[1] // len(order), dtype=torch.int64)
    for place, column in enumerate(order):
        words += codes[:, column :: len(order)].long() << (bits * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
