"""Modules of the engine over weights of tests, without compiling anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trtx.backends.inductor.convert import convert
from trtx.backends.inductor.module import EagerRanks, load_eager, make_module
from trtx.backends.inductor.spec import EngineSpec, make_card
from trtx.files import write_json
from trtx.kernels.collectives import use_group
from trtx.models.attention import AttentionKind
from trtx.models.config import DType
from trtx.models.decoder import Decoder, Layer, Step
from trtx.models.layout import make_layout
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
    """The spec of an engine over converted weights, of as many tensor ranks as they were cut for."""
    return EngineSpec(
        model=config.model,
        quantization=config.quantization,
        dtype=config.dtype,
        limits=limits,
        tokens_per_block=TOKENS_PER_BLOCK,
        rank=Rank(tensor=config.tensor),
        arch="x86-64-v3",
    )


def make_eager_engine(
    folder: Path,
    checkpoint: Path,
    dtype: DType = "float32",
    num_blocks: int = 40,
    attention: AttentionKind = "gather",
    tensor: int = 1,
) -> EagerPrograms | EagerRanks:
    """Convert a checkpoint and load it as an engine that is not compiled."""
    config = convert_quietly(checkpoint, folder / "weights", dtype, tensor)
    card = make_card(make_spec(config), {}, {"torch": torch.__version__}, "AVX2")
    (folder / "engine").mkdir()
    write_json(folder / "engine" / CARD_NAME, card.model_dump(mode="json", by_alias=True))
    return load_eager(folder / "engine", folder / "weights", num_blocks, attention)


def load_rank(weights: Path, rank: int) -> tuple[Decoder, dict[str, Tensor]]:
    """One rank's module over its own file, and the tensors of the file."""
    config = load_weights_config(weights)
    layout = make_layout(config.model, config.quantization, config.dtype, config.tensor, config.pipeline, rank)
    tensors = map_weights(weights / config.ranks[rank].file, layout.tensors)
    where = Rank(tensor=config.tensor, pipeline=config.pipeline, rank=rank)
    module = make_module(config.model, config.quantization, config.dtype, where, LIMITS.max_seq_len)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module, tensors


def flatten(new: Sequence[Tensor], contexts: Sequence[int], tables_BW: Tensor, size: int) -> tuple[Tensor, ...]:
    """The inputs of a step, less select_N: sequence b brings the tokens `new[b]` and has `contexts[b]` already."""
    positions, slots = [], []
    for tokens, start, table in zip(new, contexts, tables_BW.long(), strict=True):
        positions.append(torch.arange(start, start + len(tokens)))
        slots.append(table[positions[-1] // size] * size + positions[-1] % size)
    lengths = torch.tensor([len(tokens) for tokens in new])
    starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    lens = (lengths + torch.tensor(contexts)).int()
    return torch.cat(list(new)), torch.cat(positions), torch.cat(slots), tables_BW.int(), starts, lens


def make_tables(count: int, length: int) -> Tensor:
    """Block tables [count, W] of blocks in no order, so that only the table can tell where a token is."""
    width = math.ceil(length / TOKENS_PER_BLOCK)
    blocks = torch.randperm(count * width, generator=torch.Generator().manual_seed(1)) + 1
    return blocks.view(count, width).int()


def run_in_pieces(programs: Programs, tokens_BT: Tensor, cuts: tuple[int, ...], num_decoded: int) -> Tensor:
    """Logits [B, T, V]: each sequence in chunks that end at `cuts` and its last `num_decoded` tokens one by one.

    Sequence b starts b steps after the first, so that most steps have chunks and single tokens of several sequences.
    """
    count, length = tokens_BT.shape
    tables = make_tables(count, length)
    bounds = [0, *cuts, *range(length - num_decoded, length + 1)]
    parts: list[list[Tensor]] = [[] for _ in range(count)]
    for turn in range(len(bounds) - 1 + count - 1):
        pieces = [(b, turn - b) for b in range(count) if 0 <= turn - b < len(bounds) - 1]
        rows = [b for b, _ in pieces]
        starts = [bounds[at] for _, at in pieces]
        new = [tokens_BT[b, bounds[at] : bounds[at + 1]] for b, at in pieces]
        inputs = flatten(new, starts, tables[rows], TOKENS_PER_BLOCK)
        logits = programs.step(*inputs, torch.arange(len(inputs[0])))
        for b, part in zip(rows, logits.split([len(tokens) for tokens in new]), strict=True):
            parts[b].append(part)
    return torch.stack([torch.cat(some) for some in parts])


class Parts:
    """A group in which every rank gives its own part alone."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.clone()

    def all_gather(self, x: Tensor) -> Tensor:
        return x.clone()


@torch.inference_mode()
@use_group(Parts())
def run_ranks(ranks: list[Decoder], tensor: int, tokens_BT: Tensor) -> Tensor:
    """Logits [B·T, V] of all ranks in this one process: partial outputs are added up, logits put side by side."""
    batch, length = tokens_BT.shape
    tables = torch.arange(1, batch + 1)[:, None]
    tokens_M, *where = flatten(list(tokens_BT), [0] * batch, tables, length)
    x = ranks[0].embed_tokens(tokens_M, where[0])
    for start in range(0, len(ranks), tensor):
        group = ranks[start : start + tensor]
        step = group[0].start(*where, tokens_per_block=length)
        for name in group[0].layers:
            x = _run_layer([module.layers[name] for module in group], x, step, (batch + 1, length))
    if ranks[-1].tied:
        return ranks[-1].logits(x)
    return torch.cat([module.logits(x) for module in ranks[-tensor:]], -1)


def _run_layer(parts: list[Layer], x: Tensor, step: Step, pool: tuple[int, int]) -> Tensor:
    first = parts[0]
    pools = [torch.zeros(2, *pool, part.attention.kv_heads, part.attention.head_dim) for part in parts]
    pairs = zip(parts, pools, strict=True)
    attended = sum(part.attention(part.attention_norm(x), step, *pair) for part, pair in pairs)
    attended = first.attention_post_norm(attended) if first.attention_post_norm else attended
    between = x if first.parallel else x + attended
    added = sum(part.mlp(part.mlp_norm(between)) for part in parts)
    added = first.mlp_post_norm(added) if first.mlp_post_norm else added
    return x + attended + added
