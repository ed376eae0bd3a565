"""Writes a Hugging Face model folder with random weights.

Every tensor has a generator of its own, seeded by the tensor's name, and is drawn by the processor: the bytes depend on
no device and on no order, so that all cores can draw at once.

What a layer adds is small beside what it is added to, as in a trained model. Else every layer makes more of what
numbers of few bits round, and nobody could tell rounding from an error: with all matrices alike, rounding activations
to fp8 moved the logits of 32 layers by 0.46 of their size, and this way by 0.03.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from trtx.files import sha256_bytes, write_json
from trtx.models.linear_layout import TensorSpec

Progress = Callable[[int, int, str], None]

# What a matrix makes of numbers of size 1: that of Llama's initializer_range, 0.02, with 4,096 columns.
GAIN = 1.28
# Those that add to the stream of all layers are smaller by √(2 · layers): Radford et al., Language Models are
# Unsupervised Multitask Learners, 2.3. So all layers together add numbers of about size 1.
ADDING = ("o_proj.weight", "down_proj.weight")
# The size of embeddings that are not the head as well, whose logits would be those of the last token.
EMBEDDING, EMBEDDING_SIZE = "model.embed_tokens.weight", 2.0
# Numbers drawn at a time by one thread.
PIECE = 1 << 24
# Of one file.
SHARD_BYTES = 4 << 30


def write_model(config: Mapping[str, Any], seed: int, output: Path, progress: Progress) -> None:
    """config.json, model-….safetensors with their index, and a tokenizer of bytes."""
    write_json(output / "config.json", dict(config))
    write_tokenizer(config, output)
    shards = list(make_shards(list(list_tensors(config))))
    index: dict[str, str] = {}
    total = sum(len(shard) for shard in shards)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            for number, shard in enumerate(shards, 1):
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
                save_file(draw_tensors(shard, config, seed, pool), output / name, metadata={"format": "pt"})
                index |= {spec.name: name for spec in shard}
                progress(len(index), total, "tensors")
    finally:
        torch.set_num_threads(threads)
    size = sum(_bytes(spec) for shard in shards for spec in shard)
    write_json(output / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


def list_tensors(config: Mapping[str, Any]) -> Iterator[TensorSpec]:
    """The tensors of a Llama by Hugging Face's names."""
    hidden, middle, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield _spec("model.embed_tokens.weight", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield _spec(f"{prefix}.input_layernorm.weight", hidden)
        yield _spec(f"{prefix}.self_attn.q_proj.weight", q, hidden)
        yield _spec(f"{prefix}.self_attn.k_proj.weight", kv, hidden)
        yield _spec(f"{prefix}.self_attn.v_proj.weight", kv, hidden)
        yield _spec(f"{prefix}.self_attn.o_proj.weight", hidden, q)
        yield _spec(f"{prefix}.post_attention_layernorm.weight", hidden)
        yield _spec(f"{prefix}.mlp.gate_proj.weight", middle, hidden)
        yield _spec(f"{prefix}.mlp.up_proj.weight", middle, hidden)
        yield _spec(f"{prefix}.mlp.down_proj.weight", hidden, middle)
    yield _spec("model.norm.weight", hidden)
    if not config["tie_word_embeddings"]:
        yield _spec("lm_head.weight", vocab, hidden)


def make_shards(specs: list[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Tensors in order, as many in a file as its size allows."""
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(map(_bytes, shard)) + _bytes(spec) > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def deviation_of(spec: TensorSpec, config: Mapping[str, Any]) -> float:
    """The standard deviation of a matrix's numbers."""
    if spec.name == EMBEDDING and not config["tie_word_embeddings"]:
        return EMBEDDING_SIZE
    deviation = GAIN / math.sqrt(spec.shape[1])
    return deviation / math.sqrt(2 * config["num_hidden_layers"]) if spec.name.endswith(ADDING) else deviation


def draw_tensors(
    specs: list[TensorSpec], config: Mapping[str, Any], seed: int, pool: ThreadPoolExecutor
) -> dict[str, Tensor]:
    """The values of some tensors: ones for norms, a normal distribution for matrices."""
    tensors = {spec.name: torch.empty(spec.shape, dtype=torch.bfloat16) for spec in specs}
    pieces = [
        (spec, start, tensors[spec.name].view(-1)[start : start + PIECE])
        for spec in specs
        for start in range(0, tensors[spec.name].numel(), PIECE)
    ]

    def draw(piece: tuple[TensorSpec, int, Tensor]) -> None:
        spec, start, target = piece
        if spec.name.endswith("norm.weight"):
            target.fill_(1)
            return
        digest = sha256_bytes(f"{seed} {spec.name} {start}".encode())
        generator = torch.Generator().manual_seed(int(digest[:15], 16))
        target.copy_(torch.randn(target.shape, generator=generator).mul_(deviation_of(spec, config)))

    list(pool.map(draw, pieces))
    return tensors


def write_tokenizer(config: Mapping[str, Any], output: Path) -> None:
    """A token for every byte, and for every other id a text of its own, which no prompt is cut into."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab_size = config["vocab_size"]
    vocab = {letter: index for index, letter in enumerate(letters)}
    bos, eos = vocab_size - 2, vocab_size - 1
    vocab |= {f"{index:06}": index for index in range(len(letters), bos)} | {"<s>": bos, "</s>": eos}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(output / "tokenizer.json"))
    write_json(
        output / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )


def _spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape, "bfloat16")


def _bytes(spec: TensorSpec) -> int:
    size = 2
    for length in spec.shape:
        size *= length
    return size
