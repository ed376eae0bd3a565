"""The program of one of several ranks, each on a GPU of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trtx.runtime.card import EngineCard
from trtx.runtime.cuda import CudaPrograms
from trtx.runtime.device_sampler import Draws
from trtx.runtime.ranks import ProcessRanks, Run, in_group

# What ranks other than 0 take for the draws of a step: that there are some.
DRAWN_ELSEWHERE = Draws(*(torch.empty(0) for _ in range(6)))


class CudaRank(CudaPrograms):
    """CudaPrograms whose program meets the other ranks, inside the graphs, too.

    Every rank sees the same logits and chooses the most likely tokens by itself. Drawn ones are rank 0's, which tells
    them the others: sums of probabilities may be rounded in another order elsewhere.
    """

    # NCCL has threads of its own, which ask the device about what they started before.
    capture_error_mode = "thread_local"

    def __init__(
        self, card: EngineCard, run: Run, pools: Sequence[Tensor], num_blocks: int, group: ProcessRanks
    ) -> None:
        super().__init__(card, in_group(run, group), pools, num_blocks)
        self._group = group

    def _draw(self, logits_NV: Tensor, draws: Draws) -> None:
        if self._group.rank == 0:
            super()._draw(logits_NV, draws)
        self._group.broadcast(self._last_N)
