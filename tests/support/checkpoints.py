"""Checkpoints for tests: random Llamas of transformers, and unified checkpoints written by the format's description."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

FP8 = torch.float8_e4m3fn
HF_NAMES = {
    "none": None,
    "fp8": "FP8",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16_AWQ",
    "int4_awq": "W4A16_AWQ",
}


def make_llama(folder: Path, *, seed: int = 0, shards: str = "1GB", **overrides: Any) -> LlamaForCausalLM:
    """Save a random Llama and return it; `shards` is the largest size of one file."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size=shards)
    return model


@dataclass(frozen=True)
class Unified:
    """A unified checkpoint: its folder, its tensors, and the float weights that they stand for."""

    folder: Path
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]


def make_unified(folder: Path, algorithm: str, *, kv_cache: str = "auto", seed: int = 0, **overrides: Any) -> Unified:
    """A random Llama quantized by rounding, in the layout of ModelOpt's export; no calibration is involved.

    Weights in `weights` include pre_quant_scale, as y = x · Wᵀ sees them.
    """
    model = make_llama(folder, seed=seed, **overrides)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    shared: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module, _, part = name.rpartition(".")
        if part != "weight" or not module.endswith("_proj") or algorithm == "none":
            tensors[name] = weight.clone()
            continue
        block, _, linear = module.rpartition(".")
        smooth = shared.setdefault(
            module if linear in ("o_proj", "down_proj") else block,
            torch.rand(weight.shape[1], generator=generator) + 0.5,
        )
        tensors |= {f"{module}.{key}": value for key, value in quantize(algorithm, weight, linear, smooth).items()}
        weights[name] = dequantize(tensors, module, algorithm)
    if kv_cache == "fp8":
        for layer in range(model.config.num_hidden_layers):
            for which in "kv":
                name = f"model.layers.{layer}.self_attn.{which}_proj.{which}_scale"
                tensors[name] = torch.rand((), generator=generator) * 0.02 + 0.01
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    write_format(folder, algorithm, kv_cache)
    return Unified(folder, tensors, weights)


def write_format(folder: Path, algorithm: str, kv_cache: str = "auto", **facts: Any) -> None:
    quantization = {
        "quant_algo": HF_NAMES[algorithm],
        "kv_cache_quant_algo": "FP8" if kv_cache == "fp8" else None,
        "exclude_modules": ["lm_head", "model.embed_tokens"],
        **({"group_size": 128} if algorithm.startswith("int4") else {}),
        **facts,
    }
    text = json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
    (folder / "hf_quant_config.json").write_text(text)


def quantize(algorithm: str, weight: Tensor, linear: str, smooth: Tensor) -> dict[str, Tensor]:
    """Round one weight [N, K]; `smooth` [K] becomes pre_quant_scale where the format has one."""
    if algorithm == "fp8":
        scale = weight.abs().max() / 448
        return {"weight": (weight / scale).to(FP8), "weight_scale": scale, "input_scale": torch.tensor(0.02)}
    if algorithm in ("int8_sq", "int8_wo"):
        smoothed = weight / smooth if algorithm == "int8_sq" else weight
        scale = smoothed.abs().amax(1) / 127
        found = {"weight": (smoothed / scale[:, None]).round().to(torch.int8), "weight_scale": scale}
        return found | (
            {"pre_quant_scale": smooth.clone(), "input_scale": torch.tensor(0.05)} if algorithm == "int8_sq" else {}
        )
    grouped = weight.view(weight.shape[0], -1, 128)
    scale = grouped.abs().amax(-1) / 7
    q = (grouped / scale[..., None]).round().clamp(-8, 7).view_as(weight).to(torch.int8)
    packed = (q[0::2] & 15) | ((q[1::2] & 15) << 4)
    found = {"weight": packed.view(torch.uint8), "weight_scale": scale}
    has_smooth = algorithm == "int4_awq" and linear in ("o_proj", "down_proj")
    return found | ({"pre_quant_scale": smooth} if has_smooth else {})


def dequantize(tensors: dict[str, Tensor], module: str, algorithm: str) -> Tensor:
    """The float weight [N, K] of a module's tensors, by the description of the format."""
    weight, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
    if algorithm.startswith("int4"):
        nibbles = torch.stack([weight & 15, weight >> 4], 1).flatten(0, 1).to(torch.int16)
        signed = torch.where(nibbles > 7, nibbles - 16, nibbles).float()
        value = signed * scale.repeat_interleave(128, 1)
    else:
        value = weight.float() * scale.reshape(-1, 1)
    smooth = tensors.get(f"{module}.pre_quant_scale")
    return value if smooth is None else value * smooth
