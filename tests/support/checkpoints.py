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
# Algorithm → ModelOpt's name, of every format that is packed as ModelOpt does.
HF_NAMES = {
    "none": None,
    "fp8": "FP8",
    "fp8_dynamic": "FP8_PER_CHANNEL_PER_TOKEN",
    "fp8_block_wo": "fp8_pb_wo",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16_AWQ",
    "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
    "nvfp4": "NVFP4",
    "nvfp4_awq": "NVFP4_AWQ",
    "mxfp4": "mxfp4",
    "mxfp8": "MXFP8",
}
INT4 = ("int4_wo", "int4_awq", "w4a8_awq")
GROUPS = {**dict.fromkeys(INT4, 128), "nvfp4": 16, "nvfp4_awq": 16, "mxfp8": 32}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


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
    if kv_cache != "auto":
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
        "kv_cache_quant_algo": {"fp8": "FP8", "int8": "INT8", "auto": None}[kv_cache],
        "exclude_modules": ["lm_head", "model.embed_tokens"],
        **({"group_size": GROUPS[algorithm]} if algorithm in GROUPS else {}),
        **facts,
    }
    text = json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
    (folder / "hf_quant_config.json").write_text(text)


def quantize(algorithm: str, weight: Tensor, linear: str, smooth: Tensor) -> dict[str, Tensor]:
    """Round one weight [N, K]; `smooth` [K] becomes pre_quant_scale where the format has one."""
    extras = {}
    if algorithm == "int8_sq" or (algorithm.endswith("awq") and linear in ("o_proj", "down_proj")):
        extras["pre_quant_scale"] = smooth.clone()
    if algorithm in ("fp8", "int8_sq", "w4a8_awq", "nvfp4", "nvfp4_awq"):
        extras["input_scale"] = torch.tensor({"int8_sq": 0.05, "nvfp4": 0.002, "nvfp4_awq": 0.002}.get(algorithm, 0.02))
    if algorithm in INT4:
        return (
            _round_int4(weight) | extras | ({"weight_scale_2": torch.tensor(0.01)} if algorithm == "w4a8_awq" else {})
        )
    if algorithm in ("nvfp4", "nvfp4_awq", "mxfp4", "mxfp8"):
        return _round_blocks(algorithm, weight) | extras
    if algorithm == "fp8_block_wo":
        return _round_squares(weight)
    if algorithm == "fp8":
        scale = weight.abs().max() / 448
        return {"weight": (weight / scale).to(FP8), "weight_scale": scale} | extras
    if algorithm == "fp8_dynamic":
        scale = weight.abs().amax(1) / 448
        return {"weight": (weight / scale[:, None]).to(FP8), "weight_scale": scale}
    smoothed = weight / smooth if algorithm == "int8_sq" else weight
    scale = smoothed.abs().amax(1) / 127
    return {"weight": (smoothed / scale[:, None]).round().to(torch.int8), "weight_scale": scale} | extras


def _round_int4(weight: Tensor) -> dict[str, Tensor]:
    grouped = weight.view(weight.shape[0], -1, 128)
    scale = grouped.abs().amax(-1) / 7
    q = (grouped / scale[..., None]).round().clamp(-8, 7).view_as(weight).to(torch.int8)
    packed = (q[0::2] & 15) | ((q[1::2] & 15) << 4)
    return {"weight": packed.view(torch.uint8), "weight_scale": scale}


def _round_blocks(algorithm: str, weight: Tensor) -> dict[str, Tensor]:
    size = 16 if algorithm.startswith("nvfp4") else 32
    grouped = weight.view(weight.shape[0], -1, size)
    largest, found = grouped.abs().amax(-1), {}
    if size == 16:
        found["weight_scale_2"] = weight.abs().max() / (6 * 448)
        found["weight_scale"] = (largest / 6 / found["weight_scale_2"]).to(FP8)
        steps = found["weight_scale"].float() * found["weight_scale_2"]
    else:
        exponents = torch.log2(largest / (448 if algorithm == "mxfp8" else 6)).ceil()
        found["weight_scale"], steps = (exponents + 127).to(torch.uint8), torch.exp2(exponents)
    scaled = grouped / steps[..., None]
    if algorithm == "mxfp8":
        return found | {"weight": scaled.to(FP8).view_as(weight)}
    codes = (scaled[..., None] - E2M1).abs().argmin(-1).to(torch.uint8).view_as(weight)
    return found | {"weight": codes[:, 0::2] | (codes[:, 1::2] << 4)}


def _round_squares(weight: Tensor) -> dict[str, Tensor]:
    rows, columns = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
    padded = torch.zeros(rows * 128, columns * 128)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    scale = padded.view(rows, 128, columns, 128).abs().amax((1, 3), keepdim=True) / 448
    rounded = (padded.view(rows, 128, columns, 128) / scale).to(FP8).view_as(padded)
    return {"weight": rounded[: weight.shape[0], : weight.shape[1]].contiguous(), "weight_scale": scale}


def dequantize(tensors: dict[str, Tensor], module: str, algorithm: str) -> Tensor:
    """The float weight [N, K] of a module's tensors, by the description of the format."""
    weight, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
    if algorithm in INT4:
        nibbles = torch.stack([weight & 15, weight >> 4], 1).flatten(0, 1).to(torch.int16)
        value = torch.where(nibbles > 7, nibbles - 16, nibbles).float() * scale.repeat_interleave(128, 1)
    elif algorithm in ("nvfp4", "nvfp4_awq"):
        steps = scale.float() * tensors[f"{module}.weight_scale_2"]
        value = _fp4(weight) * steps.repeat_interleave(16, 1)
    elif algorithm in ("mxfp4", "mxfp8"):
        numbers = _fp4(weight) if algorithm == "mxfp4" else weight.float()
        value = numbers * torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    elif algorithm == "fp8_block_wo":
        # ModelOpt writes a scalar for a matrix of one square.
        squares = scale.reshape(-(-weight.shape[0] // 128), -1)
        steps = squares.repeat_interleave(128, 0).repeat_interleave(128, 1)
        value = weight.float() * steps[: weight.shape[0], : weight.shape[1]]
    else:
        value = weight.float() * scale.reshape(-1, 1)
    smooth = tensors.get(f"{module}.pre_quant_scale")
    return value if smooth is None else value * smooth


def _fp4(packed: Tensor) -> Tensor:
    return E2M1[torch.stack([packed & 15, packed >> 4], -1).flatten(1).int()]


def round_input(tensors: dict[str, Tensor], module: str, algorithm: str, x: Tensor) -> Tensor:
    """What the format makes of a linear's input before the product with `dequantize`, by its description."""
    parts = (tensors.get(f"{module}.{part}") for part in ("input_scale", "pre_quant_scale"))
    scale, smooth = (torch.tensor(1.0) if part is None else part for part in parts)
    x = x * smooth
    if algorithm in ("fp8", "w4a8_awq"):
        x = (x / scale).clamp(-448, 448).to(FP8).float() * scale
    elif algorithm == "fp8_dynamic":
        step = x.abs().amax(-1, keepdim=True) / 448
        x = (x / step).to(FP8).float() * step
    elif algorithm == "int8_sq":
        x = (x / scale).round().clamp(-128, 127) * scale
    elif algorithm in ("nvfp4", "nvfp4_awq"):
        groups = x.unflatten(-1, (-1, 16))
        step = (groups.abs().amax(-1, keepdim=True) / 6 / scale).clamp(max=448).to(FP8).float() * scale
        x = _nearest_fp4(groups, step).flatten(-2)
    elif algorithm in ("mxfp4", "mxfp8"):
        groups = x.unflatten(-1, (-1, 32))
        largest = groups.abs().amax(-1, keepdim=True)
        step = torch.exp2(torch.log2(largest / (6 if algorithm == "mxfp4" else 448)).ceil())
        x = (_nearest_fp4(groups, step) if algorithm == "mxfp4" else (groups / step).to(FP8).float() * step).flatten(-2)
    return x / smooth


def _nearest_fp4(groups: Tensor, step: Tensor) -> Tensor:
    scaled = (groups / torch.where(step > 0, step, 1.0)).unsqueeze(-1)
    # On a tie the even mantissa, which has an even place in the table of sizes.
    distance = (scaled.abs() - E2M1[:8]).abs() + torch.tensor([0, 1e-6] * 4)
    return torch.copysign(E2M1[distance.argmin(-1)], groups) * step
