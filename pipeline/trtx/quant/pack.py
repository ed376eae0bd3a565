"""Turns the tensors of a Hugging Face checkpoint into engine tensors, in the order of models/layout.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trtx.models.checkpoint import Checkpoint
from trtx.models.config import DType, ModelConfig, load_architecture
from trtx.models.formats import QuantFormat
from trtx.models.layout import KvScales, Plain, RopeTable, Shard, layer_linears, rank_parts
from trtx.models.linear_layout import ExpertLinears, LinearSpec
from trtx.models.rope import make_inv_freq
from trtx.quant.pack_linear import pack_experts, pack_linear
from trtx.quant.unpack import read_kv_scale


def pack_rank(
    checkpoint: Checkpoint, config: ModelConfig, quantization: QuantFormat, dtype: DType, shard: Shard
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one rank in the order of its layout, one at a time.

    Raises VerificationFailed when the checkpoint is not what its config files say.
    """
    adapt(checkpoint, config, shard)
    for part in rank_parts(config, quantization, shard):
        match part:
            case Plain():
                yield part.name, checkpoint.read(part.source).to(getattr(torch, dtype))
            case LinearSpec():
                yield from pack_linear(checkpoint, part, dtype, shard)
            case ExpertLinears():
                yield from pack_experts(checkpoint, part, dtype, shard)
            case KvScales():
                for which in "kv":
                    yield f"{part.name}.{which}_scale", read_kv_scale(checkpoint, part.source, which)
            case RopeTable():
                yield f"{part.name}.inv_freq", make_inv_freq(part)


def adapt(checkpoint: Checkpoint, config: ModelConfig, shard: Shard) -> None:
    """Let a checkpoint look as the layout describes it, where its architecture has another custom."""
    names = load_architecture(config.architecture)
    if names.bare_base:
        checkpoint.assume_base(names.base)
    if names.transposed:
        linears = [spec for layer in shard.layers for spec in layer_linears(config, QuantFormat(), shard, layer)]
        checkpoint.transpose(f"{source}.weight" for spec in linears for source in spec.sources)
