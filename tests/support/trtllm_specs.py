"""Specs of TensorRT-LLM for tests, and a tiny Llama in Hugging Face's form that they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from support.trtllm_standin_checkpoint import Tensor, write_tensors

from trtx.backends.tensorrt_llm.spec import (
    Batching,
    Container,
    Device,
    Pool,
    Ranks,
    Shape,
    Sizes,
    TrtllmSpec,
)
from trtx.models.formats import QuantFormat

TINY = Shape(
    architecture="LlamaForCausalLM",
    vocab_size=258,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=128,
)
LLAMA_70B = Shape(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=131072,
    num_parameters=70_553_706_496,
)
QWEN2 = Shape(
    architecture="Qwen2ForCausalLM",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    max_position_embeddings=32768,
)
MIXTRAL = Shape(
    architecture="MixtralForCausalLM",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=32768,
    num_experts=8,
    experts_per_token=2,
)


def make_spec(release: str = "0.16.0", **changes: Any) -> TrtllmSpec:
    """A small engine on one H100; `changes` replace fields, `algorithm` and `kv_cache` stand for the format."""
    algorithm, kv_cache = changes.pop("algorithm", "none"), changes.pop("kv_cache", "auto")
    fields: dict[str, Any] = {
        "release": release,
        "flow": "engine",
        "container": Container(image=f"nvcr.io/nvidia/tensorrt-llm/release:{release}", digest="sha256:" + "a" * 64),
        "shape": TINY,
        "quantization": QuantFormat(algorithm=algorithm, kv_cache=kv_cache),
        "dtype": "bfloat16",
        "ranks": Ranks(),
        "device": Device(name="h100-sxm-80gb", sm=90, memory_bytes=80 << 30),
        "sizes": Sizes(max_batch_size=4, max_num_tokens=256, max_seq_len=64),
        "pool": Pool(tokens_per_block=32, memory_fraction=0.9, reuse=True),
        "batching": Batching(policy="guaranteed-no-evict", chunked_context=True),
        "converter": "release",
    }
    return TrtllmSpec(**{**fields, **changes})


def write_model(folder: Path, shape: Shape = TINY) -> Path:
    """A Llama with random weights in bfloat16, and files that look like a tokenizer's."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(7)

    def make(*size: int) -> Tensor:
        return "BF16", (draw.standard_normal(size, np.float32).view(np.uint32) >> 16).astype(np.uint16)

    inner, kv = shape.intermediate_size, shape.num_kv_heads * shape.head_dim
    tensors = {"model.embed_tokens.weight": make(shape.vocab_size, shape.hidden_size)}
    for layer in range(shape.num_layers):
        here = f"model.layers.{layer}"
        for name, rows in (("q", shape.hidden_size), ("k", kv), ("v", kv), ("o", shape.hidden_size)):
            tensors[f"{here}.self_attn.{name}_proj.weight"] = make(rows, shape.hidden_size)
        for name, rows, columns in (
            ("gate", inner, shape.hidden_size),
            ("up", inner, shape.hidden_size),
            ("down", shape.hidden_size, inner),
        ):
            tensors[f"{here}.mlp.{name}_proj.weight"] = make(rows, columns)
        tensors[f"{here}.input_layernorm.weight"] = make(shape.hidden_size)
        tensors[f"{here}.post_attention_layernorm.weight"] = make(shape.hidden_size)
    tensors["model.norm.weight"] = make(shape.hidden_size)
    tensors["lm_head.weight"] = make(shape.vocab_size, shape.hidden_size)
    write_tensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": [shape.architecture],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    tokens = [{"id": 256, "content": "<s>"}, {"id": 257, "content": "</s>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": tokens}))
    return folder
