"""All tensors of one rank of a TensorRT-LLM checkpoint, one at a time, of those of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.blocks import (
    Block,
    attention_blocks,
    expert_blocks,
    expert_names,
    mlp_blocks,
    router_name,
)
from trtx.backends.tensorrt_llm.checkpoint.pack import (
    Source,
    largest_input_scale,
    pack_bias,
    pack_experts,
    pack_linear,
)
from trtx.backends.tensorrt_llm.checkpoint.share import Share
from trtx.backends.tensorrt_llm.checkpoint.sizes import Sizes
from trtx.errors import VerificationFailed
from trtx.models.config import ModelConfig, load_architecture
from trtx.quant.unpack import read_kv_scale

Named = Iterator[tuple[str, Tensor]]

# Scales of an FP8 cache are at least 1. The attention of prompts rounds queries in steps of the same scale (the plugin
# sets qkv_scale_orig_quant to kv_scale_orig_quant), and a scale that fits keys and values would cut queries off. Both
# of NVIDIA's converters do so: convert_checkpoint.py writes 1, ModelOpt's export_tensorrt_llm_checkpoint at least 1;
# and older loaders take 1 whatever the file has (preprocess_weights).
LEAST_FP8_KV_SCALE = 1.0


def pack_rank(source: Source, model: ModelConfig, sizes: Sizes, share: Share) -> Named:
    """The tensors of one rank, in the same order for all ranks of a stage.

    Raises VerificationFailed when the folder is not what its config files say.
    """
    names, dtype = load_architecture(model.architecture), source.torch_dtype
    embed, head = f"{names.base_source(names.embed)}.weight", f"{names.head}.weight"
    if share.is_first:
        yield "transformer.vocab_embedding.weight", _read_vocab(source, embed, sizes, share.vocab)
    for local, layer in enumerate(share.layers):
        here = f"transformer.layers.{local}"
        for norm, name in zip(("input_layernorm", "post_layernorm"), names.layer_norms, strict=True):
            weight = source.checkpoint.read(f"{names.layer_source(layer, name[1])}.weight")
            yield f"{here}.{norm}.weight", weight.to(dtype)
        yield from _pack_attention(source, sizes, share, layer, here)
        yield from (_pack_mixture if sizes.num_experts else _pack_mlp)(source, sizes, share, layer, here)
    if share.is_last:
        yield (
            "transformer.ln_f.weight",
            source.checkpoint.read(f"{names.base_source(names.final_norm)}.weight").to(dtype),
        )
        yield "lm_head.weight", _read_vocab(source, embed if model.tie_word_embeddings else head, sizes, share.vocab)


def _pack_attention(source: Source, sizes: Sizes, share: Share, layer: int, here: str) -> Named:
    blocks = attention_blocks(sizes, share, layer)
    yield from _pack_module(source, f"{here}.attention.qkv", blocks["attention.qkv"], sizes.qkv_bias)
    yield from _pack_module(source, f"{here}.attention.dense", blocks["attention.dense"], sizes.out_bias)
    if source.form.kv_cache is not None:
        attention = blocks["attention.qkv"].names[0].rpartition(".")[0]
        yield f"{here}.attention.kv_cache_scaling_factor", _kv_scale(source, attention)


def _pack_mlp(source: Source, sizes: Sizes, share: Share, layer: int, here: str) -> Named:
    for module, block in mlp_blocks(sizes, share, layer).items():
        yield from _pack_module(source, f"{here}.{module}", block, sizes.mlp_bias)


def _pack_mixture(source: Source, sizes: Sizes, share: Share, layer: int, here: str) -> Named:
    names, form = load_architecture(sizes.architecture), source.form.of(f"{here}.mlp")
    router = source.checkpoint.read(f"{router_name(names, layer)}.weight")
    yield f"{here}.mlp.router.weight", router.to(torch.float32)
    for module, blocks in expert_blocks(sizes, share, layer).items():
        for suffix, tensor in pack_experts(source, blocks, form).items():
            yield f"{here}.{module}.{suffix}", tensor
        if form.quant_algo == "FP8":
            everyone = [expert_names(sizes, layer, number) for number in range(sizes.num_experts)]
            matrices = [name for gate, up, down in everyone for name in ((gate, up) if module == "mlp.fc" else (down,))]
            yield f"{here}.{module}.activation_scaling_factor", largest_input_scale(source, matrices)


def _pack_module(source: Source, module: str, block: Block, bias: bool) -> Named:
    for suffix, tensor in pack_linear(source, block, source.form.of(module)).items():
        yield f"{module}.{suffix}", tensor
    if bias:
        yield f"{module}.bias", pack_bias(source, block)
        return
    for name in block.names:
        # GPTQ's tools write biases of zeros for matrices that have none.
        if f"{name}.bias" in source.checkpoint and source.checkpoint.read(f"{name}.bias").any():
            raise VerificationFailed(
                f"{name} has a bias that the engine would ignore",
                why="by config.json the model has none",
                fix="fetch the folder again",
            )


def _kv_scale(source: Source, attention: str) -> Tensor:
    """The one scale [1] of keys and values."""
    if source.form.kv_cache == "FP8" and source.quantization.kv_cache == "auto":
        return torch.ones(1)
    largest = torch.stack([read_kv_scale(source.checkpoint, attention, which) for which in "kv"]).max()
    least = LEAST_FP8_KV_SCALE if source.form.kv_cache == "FP8" else 0.0
    return largest.clamp(min=least).reshape(1)


def _read_vocab(source: Source, name: str, sizes: Sizes, rows: range) -> Tensor:
    """Rows of the vocabulary [N, K], with zeros beyond its end."""
    real = range(min(rows.start, sizes.vocab_size), min(rows.stop, sizes.vocab_size))
    found = source.checkpoint.read_part(name, real).to(source.torch_dtype)
    if len(real) == len(rows):
        return found
    padded = found.new_zeros(len(rows), sizes.hidden_size)
    padded[: len(real)] = found
    return padded
