"""Engines of the GPU benchmark: built by the backend as a build step does, over random weights made on the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from trtx.backends.inductor.build import build
from trtx.backends.inductor.spec import EngineSpec
from trtx.models.config import read_model_config
from trtx.models.formats import QuantFormat
from trtx.models.layout import layer_linears, make_layout, make_shard, rope_tables
from trtx.models.linear_layout import TensorSpec
from trtx.models.rope import make_inv_freq
from trtx.models.sources.random import SHAPES
from trtx.runtime.card import EngineCard, Limits, Rank
from trtx.runtime.cuda_load import make_programs
from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.tokenizer import Tokenizer

LLAMA_3_8B = read_model_config(SHAPES["llama-3-8b"])

FORMATS = {
    "bf16": QuantFormat(algorithm="none", kv_cache="auto", exclude=("lm_head",)),
    "fp8": QuantFormat(algorithm="fp8", kv_cache="fp8", exclude=("lm_head",)),
    "int4_awq": QuantFormat(algorithm="int4_awq", kv_cache="auto", exclude=("lm_head",)),
    "int8_wo": QuantFormat(algorithm="int8_wo", kv_cache="auto", exclude=("lm_head",)),
}
LIMITS = Limits(max_batch_size=128, max_num_tokens=8192, max_seq_len=1024)
DEVIATION = 0.02
# Of stored numbers: e4m3 fill their range, int8 are even in -127…127, halves of a byte in 1…15, which stand for -7…7.
STORED_DEVIATION = {"float8_e4m3fn": 80.0, "int8": 73.6, "uint8": 4.32}


@dataclass(frozen=True)
class Built:
    """An engine folder, its card, and how long the build took."""

    folder: Path
    card: EngineCard
    seconds: float
    log: tuple[str, ...]


def make_spec(name: str, num_layers: int) -> EngineSpec:
    """The published shape, or fewer of its layers."""
    model = LLAMA_3_8B.model_copy(update={"num_layers": num_layers})
    return EngineSpec(
        model=model,
        quantization=FORMATS[name],
        dtype="bfloat16",
        limits=LIMITS,
        tokens_per_block=64,
        rank=Rank(),
        arch="sm_90",
    )


def build_engine(name: str, folder: Path, num_layers: int = 32) -> Built:
    """Compile an engine as a build step does."""
    output, work = folder / name, folder / f"{name}.work"
    output.mkdir(parents=True)
    work.mkdir()
    lines: list[str] = []
    started = time.monotonic()
    card = build(make_spec(name, num_layers), output, work, lines.append)
    return Built(output, card, time.monotonic() - started, tuple(lines))


def make_weights(card: EngineCard, seed: int = 7, device: str = "cuda") -> dict[str, Tensor]:
    """Random weights in the engine's layout, on the device."""
    torch.manual_seed(seed)
    rank = card.rank
    layout = make_layout(card.model, card.quantization, card.dtype, rank.tensor, rank.pipeline, rank.rank)
    shard = make_shard(card.model, rank.tensor, rank.pipeline, rank.rank)
    frequencies = {f"{table.name}.inv_freq": make_inv_freq(table) for table in rope_tables(card.model, shard)}
    dtypes = {spec.name: spec.dtype for spec in layout.tensors}
    with torch.device(device):
        return {
            spec.name: frequencies[spec.name].to(device) if spec.name in frequencies else draw(spec, dtypes)
            for spec in layout.tensors
        }


def draw(spec: TensorSpec, dtypes: Mapping[str, str]) -> Tensor:
    """One tensor: ones, a scale that gives weights their deviation, or numbers; `dtypes` are those of all tensors."""
    dtype, last = getattr(torch, spec.dtype), spec.name.rpartition(".")[2]
    if "norm" in spec.name or last == "pre_quant_scale":
        return torch.ones(spec.shape, dtype=dtype)
    constants = {"input_scale": 0.02, "k_scale": 0.05, "v_scale": 0.05}
    if last == "weight_scale":
        constants[last] = DEVIATION / STORED_DEVIATION[dtypes[spec.name.removesuffix("_scale")]]
    if last in constants:
        return torch.full(spec.shape, constants[last], dtype=dtype)
    if spec.dtype == "int8":
        return torch.randint(-127, 128, spec.shape, dtype=dtype)
    if spec.dtype == "uint8":
        low, high = (torch.randint(1, 16, spec.shape, dtype=dtype) for _ in range(2))
        return low | (high << 4)
    # In place: the largest matrix is a third of a small model.
    drawn = torch.randn(spec.shape, dtype=torch.bfloat16).mul_(STORED_DEVIATION.get(spec.dtype, DEVIATION))
    return drawn.clamp_(-448, 448).to(dtype)


def count_products(card: EngineCard) -> int:
    """Numbers of all matrices that every token of a prompt is multiplied with: the head sees a prompt's last alone."""
    shard = make_shard(card.model)
    linears = [one for layer in shard.layers for one in layer_linears(card.model, card.quantization, shard, layer)]
    return sum(linear.in_features * linear.out_features for linear in linears)


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """A word for every token id."""
    raw = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))  # noqa: S106
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.WordPiece(prefix="##")
    return Tokenizer(raw, [vocab_size - 1], None)


def load_engine(built: Built, weights: dict[str, Tensor], num_blocks: int) -> DeviceEngine:
    """The engine over weights that are on the device."""
    programs = make_programs(built.folder, built.card, weights, num_blocks)
    return DeviceEngine(programs, make_tokenizer(built.card.model.vocab_size))
