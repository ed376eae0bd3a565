"""Engines of the GPU benchmark: built by the backend as a build step does, over random weights made on the device."""

from __future__ import annotations

import time
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
from trtx.models.layout import make_layout, make_shard, rope_tables
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
}
LIMITS = Limits(max_batch_size=128, max_num_tokens=8192, max_seq_len=1024)
DEVIATION = 0.02


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


def make_weights(card: EngineCard, seed: int = 7) -> dict[str, Tensor]:
    """Random weights in the engine's layout, on the device."""
    torch.manual_seed(seed)
    rank = card.rank
    layout = make_layout(card.model, card.quantization, card.dtype, rank.tensor, rank.pipeline, rank.rank)
    shard = make_shard(card.model, rank.tensor, rank.pipeline, rank.rank)
    frequencies = {f"{table.name}.inv_freq": make_inv_freq(table) for table in rope_tables(card.model, shard)}
    weights = {}
    for spec in layout.tensors:
        dtype = getattr(torch, spec.dtype)
        last = spec.name.rpartition(".")[2]
        if spec.name in frequencies:
            weights[spec.name] = frequencies[spec.name].cuda()
        elif "norm" in spec.name:
            weights[spec.name] = torch.ones(spec.shape, dtype=dtype, device="cuda")
        elif last == "input_scale":
            weights[spec.name] = torch.full(spec.shape, 0.02, dtype=dtype, device="cuda")
        elif last == "weight_scale":
            weights[spec.name] = torch.full(spec.shape, DEVIATION / 80, dtype=dtype, device="cuda")
        elif last in ("k_scale", "v_scale"):
            weights[spec.name] = torch.full(spec.shape, 0.05, dtype=dtype, device="cuda")
        else:
            deviation = 80 if dtype == torch.float8_e4m3fn else DEVIATION
            drawn = torch.randn(spec.shape, dtype=torch.bfloat16, device="cuda") * deviation
            weights[spec.name] = drawn.clamp(-448, 448).to(dtype)
    return weights


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
