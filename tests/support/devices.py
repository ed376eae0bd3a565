"""A device that is none: programs that start a step and keep its tokens, as those of a GPU do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from support.engines import FakePrograms
from torch import Tensor

from trtx.runtime.card import EngineCard
from trtx.runtime.device_sampler import Draws, choose_largest, draw_tokens
from trtx.runtime.inputs import StepInputs
from trtx.runtime.memory import blocks_per_sequence
from trtx.runtime.staging import Layout, decode_layout, write_inputs


class FakePending:
    """Tokens that are known at once, and told when they are waited for."""

    def __init__(self, device: FakeDevice, logits_NV: Tensor, tokens: list[int]) -> None:
        self._device, self._tokens, self._logits_NV, self._number = device, tokens, logits_NV, len(device.calls)

    @property
    def logits_NV(self) -> Tensor:
        assert self._number == len(self._device.calls), "the next step has overwritten these logits"
        return self._logits_NV

    def tokens(self) -> list[int]:
        self._device.waiting -= 1
        return self._tokens


class FakeDevice(FakePrograms):
    """FakePrograms whose inputs pass through blocks of bytes, padded where they only decode."""

    def __init__(self, card: EngineCard, num_blocks: int = 65) -> None:
        super().__init__(card, num_blocks)
        self.last: list[int] = []
        self.waiting = 0

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> FakePending:
        width, rows = blocks_per_sequence(self.card), inputs.tokens_M.size
        is_decode = rows == inputs.context_B.size == inputs.select_N.size
        layout = Layout(rows, inputs.context_B.size, inputs.tables_BW.shape[1], inputs.select_N.size)
        if is_decode:
            layout = decode_layout(rows + 3, width)
        block = torch.full((layout.num_bytes,), 0xFF, dtype=torch.uint8)
        write_inputs(layout, block, inputs, sources)
        views = layout.views(block)
        assert views["starts_B1"].tolist()[inputs.context_B.size :] == list(
            range(rows, rows + layout.sequences - inputs.context_B.size + 1)
        )
        assert not views["context_B"][inputs.context_B.size :].any()
        assert not views["slots_M"][rows:].any()
        tokens_M = views["tokens_M"][:rows].clone()
        for row, source in enumerate(views["sources_M"][:rows].tolist()):
            if source >= 0:
                tokens_M[row] = self.last[source]
        sequences = inputs.context_B.size
        logits_NV = self.step(
            tokens_M,
            views["positions_M"][:rows].contiguous(),
            views["slots_M"][:rows].contiguous(),
            views["tables_BW"][:sequences].contiguous(),
            views["starts_B1"][: sequences + 1].contiguous(),
            views["context_B"][:sequences].contiguous(),
            views["select_N"][: inputs.select_N.size].contiguous(),
        )
        tokens_N = choose_largest(logits_NV)
        if draws is not None:
            tokens_N[draws.rows_R] = draw_tokens(logits_NV, draws)
        self.last = tokens_N.tolist()
        self.waiting += 1
        assert self.waiting <= 2, "more than two steps are under way"
        return FakePending(self, logits_NV, np.array(self.last).tolist())
