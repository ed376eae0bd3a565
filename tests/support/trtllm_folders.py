"""Small Hugging Face folders for TensorRT-LLM checkpoints: random models, quantized by the formats' descriptions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import INT4, dequantize, quantize, write_format
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.write import convert_folder
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import TrtxError

RELEASE = "1.2.1"
# What config.json excludes from every format.
EXCLUDED = ["*lm_head", "*router", "*vocab_embedding", "*ln_f"]
CLASSES = {
    "LlamaForCausalLM": "LlamaConfig",
    "MistralForCausalLM": "MistralConfig",
    "Qwen2ForCausalLM": "Qwen2Config",
    "MixtralForCausalLM": "MixtralConfig",
}
# Three layers do not divide by two stages, 66 words not by four ranks, and four ranks share two key-value heads.
SMALL: dict[str, Any] = {
    "vocab_size": 66,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# Groups of 128 columns on every one of two ranks.
GROUPED = {**SMALL, "hidden_size": 256, "intermediate_size": 512}
MATRIX = re.compile(r".*(_proj|experts\.\d+\.w[123])\.weight")
# Inputs of one matrix alone; the others share theirs.
ALONE = ("o_proj", "down_proj", "w2")


@dataclass(frozen=True)
class Folder:
    """A folder, its tensors, and the float weights that they stand for."""

    path: Path
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]


def sizes_for(algorithm: str) -> dict[str, Any]:
    return GROUPED if algorithm in INT4 else SMALL


def make_folder(
    path: Path, architecture: str, algorithm: str = "none", *, kv_cache: str = "auto", **overrides: Any
) -> Folder:
    """Save a random bfloat16 model, quantized by rounding in the layout of ModelOpt's unified export."""
    torch.manual_seed(0)
    settings = {**sizes_for(algorithm), **overrides}
    if architecture == "MixtralForCausalLM":
        settings |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = getattr(transformers, CLASSES[architecture])(**settings)
    model = getattr(transformers, architecture)(config).bfloat16()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    weights = {name: value.float() for name, value in tensors.items()}
    generator = torch.Generator().manual_seed(0)
    shared: dict[str, Tensor] = {}
    for name in [name for name in tensors if MATRIX.fullmatch(name) and algorithm != "none"]:
        module, weight = name.removesuffix(".weight"), weights[name]
        block, _, linear = module.rpartition(".")
        smooth = (torch.rand(weight.shape[1], generator=generator) + 0.5).bfloat16().float()
        smooth = smooth if linear in ALONE else shared.setdefault(block, smooth)
        parts = quantize(algorithm, weight, linear, smooth)
        if algorithm.startswith("nvfp4") and linear not in ALONE:
            # ModelOpt has one second scale for matrices that share their input.
            parts = _with_second_scale(parts, shared.setdefault(f"{block} 2", parts["weight_scale_2"] * 1.5), weight)
        tensors.pop(name)
        tensors |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
        weights[name] = dequantize(tensors, module, algorithm)
    if kv_cache != "auto":
        for layer in range(config.num_hidden_layers):
            for which in "kv":
                scale = torch.rand((), generator=generator) * 0.02 + 0.01
                tensors[f"model.layers.{layer}.self_attn.{which}_proj.{which}_scale"] = scale
    save_file(tensors, path / "model.safetensors")
    if algorithm != "none" or kv_cache != "auto":
        write_format(path, algorithm, kv_cache)
    return Folder(path, tensors, weights)


def _with_second_scale(parts: dict[str, Tensor], second: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The same matrix by another second scale: its first scales are rounded anew, its codes stay."""
    first = parts["weight_scale"].float() * parts["weight_scale_2"]
    return {**parts, "weight_scale": (first / second).to(torch.float8_e4m3fn), "weight_scale_2": second.clone()}


def convert(source: Path, output: Path, ranks: Ranks, **options: Any) -> dict[str, Any]:
    settings = {"release": RELEASE, "dtype": "bfloat16", **options}
    return convert_folder(source, output, ranks=ranks, **settings)


def refuse(source: Path, output: Path, ranks: Ranks, **options: Any) -> TrtxError:
    with pytest.raises(TrtxError) as caught:
        convert(source, output, ranks, **options)
    return caught.value
