"""The largest step that an engine may be asked for, run where its memory is measured and claimed.

Legend: see inputs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from trtx.runtime.blocks import NULL_BLOCK
from trtx.runtime.card import EngineCard
from trtx.runtime.device_sampler import Draws
from trtx.runtime.inputs import StepInputs
from trtx.runtime.memory import blocks_per_sequence

# Filters that cut nothing short: every temporary of draw_tokens is made, whatever they are.
TOP_K, TOP_P, MIN_P = 50, 0.9, 0.01


class Tokens(Protocol):
    """A step on its way, as far as it matters here."""

    def tokens(self) -> list[int]: ...


class Submitting(Protocol):
    """Programs that start a step and go on; `num_blocks` counts the null block and is two or more."""

    card: EngineCard
    num_blocks: int

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> Tokens: ...


def run_largest(programs: Submitting) -> None:
    """Run the largest step twice over whatever is in the pools, each time with a token drawn for every sequence.

    Twice, because an engine starts a step while the logits of the one before it are kept.
    """
    inputs = make_largest(programs.card, programs.num_blocks)
    draws = make_widest_draws(inputs.select_N.size)
    under_way = [programs.submit(inputs, (), draws) for _ in range(2)]
    for pending in under_way:
        pending.tokens()


def make_largest(card: EngineCard, num_blocks: int) -> StepInputs:
    """A step of max_num_tokens tokens of max_batch_size sequences, or as near to that as the limits allow.

    All sequences start here, as long as one another, and one of them has two tokens at least: a step in which each
    has one is a graph's. Where the pools have fewer blocks than that takes, sequences share them.
    """
    limits, size = card.limits, card.kv_cache.tokens_per_block
    total = min(limits.max_num_tokens, limits.max_batch_size * limits.max_seq_len)
    count = max(1, min(limits.max_batch_size, total - 1))
    lengths_B = np.full(count, total // count, dtype=np.int64)
    lengths_B[: total % count] += 1
    tables_BW = np.full((count, blocks_per_sequence(card)), NULL_BLOCK, dtype=np.int32)
    used_BW = np.arange(tables_BW.shape[1]) < -(-lengths_B[:, None] // size)
    tables_BW[used_BW] = 1 + np.arange(used_BW.sum()) % (num_blocks - 1)
    starts_B1 = np.concatenate([[0], np.cumsum(lengths_B)])
    sequences_M = np.repeat(np.arange(count), lengths_B)
    positions_M = np.arange(total) - starts_B1[sequences_M]
    return StepInputs(
        tokens_M=np.zeros(total, dtype=np.int64),
        positions_M=positions_M,
        slots_M=tables_BW[sequences_M, positions_M // size].astype(np.int64) * size + positions_M % size,
        tables_BW=tables_BW,
        starts_B1=starts_B1.astype(np.int32),
        context_B=lengths_B.astype(np.int32),
        select_N=starts_B1[1:] - 1,
    )


def make_widest_draws(count: int) -> Draws:
    """Draws of `count` rows with every filter at work."""
    return Draws(
        rows_R=torch.arange(count),
        temperature_R=torch.ones(count),
        top_k_R=torch.full((count,), TOP_K),
        top_p_R=torch.full((count,), TOP_P),
        min_p_R=torch.full((count,), MIN_P),
        number_R=torch.full((count,), 0.5, dtype=torch.float64),
    )
