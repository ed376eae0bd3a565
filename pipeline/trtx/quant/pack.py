"""Turns the tensors of a unified Hugging Face checkpoint into engine tensors, in the order of models/layout.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trtx.models.checkpoint import Checkpoint
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat
from trtx.models.layout import Shard, head_linear, layer_linears
from trtx.models.rope import make_inv_freq
from trtx.quant.pack_linear import pack_linear
from trtx.quant.unpack import read_kv_scale


def pack_rank(
    checkpoint: Checkpoint, config: ModelConfig, quantization: QuantFormat, dtype: DType, shard: Shard
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one rank in the order of its layout, one at a time.

    Raises VerificationFailed when the checkpoint is not what its config files say.
    """
    kind = getattr(torch, dtype)
    tied = config.tie_word_embeddings
    if shard.is_first or (shard.is_last and tied):
        yield "embed.weight", checkpoint.read("model.embed_tokens.weight").to(kind)
    for layer in shard.layers:
        here, there = f"layers.{layer}", f"model.layers.{layer}"
        yield f"{here}.attention_norm.weight", checkpoint.read(f"{there}.input_layernorm.weight").to(kind)
        yield f"{here}.mlp_norm.weight", checkpoint.read(f"{there}.post_attention_layernorm.weight").to(kind)
        for spec in layer_linears(config, quantization, shard, layer):
            yield from pack_linear(checkpoint, spec, dtype, shard)
        if quantization.kv_cache != "auto":
            for which in "kv":
                yield f"{here}.attention.{which}_scale", read_kv_scale(checkpoint, f"{there}.self_attn", which)
    if shard.is_last:
        yield "final_norm.weight", checkpoint.read("model.norm.weight").to(kind)
        if not tied:
            yield from pack_linear(checkpoint, head_linear(config, shard), dtype, shard)
    yield "rope.inv_freq", make_inv_freq(config)
