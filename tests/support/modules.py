"""Modules of the engine over weights of tests, without compiling anything."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from trtx.backends.inductor.convert import convert
from trtx.backends.inductor.module import load_eager, make_module
from trtx.backends.inductor.spec import EngineSpec, make_card
from trtx.files import write_json
from trtx.models.config import DType
from trtx.models.layout import make_layout
from trtx.models.llama import Llama
from trtx.models.weights_config import WeightsConfig, load_weights_config
from trtx.models.weights_file import map_weights
from trtx.runtime.card import CARD_NAME, Limits, Rank
from trtx.runtime.program import EagerPrograms, Programs

LIMITS = Limits(max_batch_size=4, max_num_tokens=64, max_seq_len=64)
TOKENS_PER_BLOCK = 8


def convert_quietly(
    checkpoint: Path, output: Path, dtype: DType = "float32", tensor: int = 1, pipeline: int = 1
) -> WeightsConfig:
    output.mkdir(parents=True)
    return convert(checkpoint, output, dtype, tensor, pipeline, lambda done, total, unit: None)


def make_spec(config: WeightsConfig, limits: Limits = LIMITS) -> EngineSpec:
    return EngineSpec(
        model=config.model,
        quantization=config.quantization,
        dtype=config.dtype,
        limits=limits,
        tokens_per_block=TOKENS_PER_BLOCK,
        rank=Rank(),
        arch="x86-64-v3",
    )


def make_eager_engine(folder: Path, checkpoint: Path, dtype: DType = "float32", num_blocks: int = 40) -> EagerPrograms:
    """Convert a checkpoint and load it as an engine that is not compiled."""
    config = convert_quietly(checkpoint, folder / "weights", dtype)
    card = make_card(make_spec(config), {}, {"torch": torch.__version__}, "AVX2")
    (folder / "engine").mkdir()
    write_json(folder / "engine" / CARD_NAME, card.model_dump(mode="json", by_alias=True))
    return load_eager(folder / "engine", folder / "weights", num_blocks)


def load_rank(weights: Path, rank: int) -> tuple[Llama, dict[str, Tensor]]:
    """One rank's module over its own file, and the tensors of the file."""
    config = load_weights_config(weights)
    layout = make_layout(config.model, config.quantization, config.dtype, config.tensor, config.pipeline, rank)
    tensors = map_weights(weights / config.ranks[rank].file, layout.tensors)
    where = Rank(tensor=config.tensor, pipeline=config.pipeline, rank=rank)
    module = make_module(config.model, config.quantization, config.dtype, where)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module, tensors


def run_in_pieces(programs: Programs, tokens_BT: Tensor, cuts: tuple[int, ...], num_decoded: int) -> Tensor:
    """Logits [B, T, V]: prefill in chunks that end at `cuts`, the last `num_decoded` tokens through decode."""
    count, length = tokens_BT.shape
    width = math.ceil(length / TOKENS_PER_BLOCK)
    # Blocks in no order, so that only the table can tell where a token is.
    blocks = torch.randperm(count * width, generator=torch.Generator().manual_seed(1)) + 1
    tables, parts = blocks.view(count, width), []
    starts = (0, *cuts)
    for start, stop in zip(starts, (*cuts, length - num_decoded), strict=True):
        positions = torch.arange(start, stop).expand(count, -1)
        rows = torch.arange(count * (stop - start))
        seen = tables[:, : math.ceil(stop / TOKENS_PER_BLOCK)]
        parts.append(programs.prefill(tokens_BT[:, start:stop], positions, seen, rows).view(count, stop - start, -1))
    for position in range(length - num_decoded, length):
        logits = programs.decode(tokens_BT[:, position], torch.full((count,), position), tables)
        parts.append(logits[:, None])
    return torch.cat(parts, 1)
