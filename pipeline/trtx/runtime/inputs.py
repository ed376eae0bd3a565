"""From a planned batch to the tensors the programs take.

Legend: B sequences, T tokens per sequence (padded), W blocks per table, N rows whose logits are wanted.
All arrays are int64. The tensors are views of buffers that the next call overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trtx.runtime.blocks import NULL_BLOCK
from trtx.runtime.request import Request
from trtx.runtime.scheduler import Chunk

# A token with this position is padding: it writes into the null block and is never selected.
PAD_POSITION = -1


class DecodeInputs:
    """Tokens, positions and block tables of the decode batch, kept from step to step.

    While the batch stays the same a step costs three vector operations; rows are written when a request joins or moves.
    """

    def __init__(self, max_batch_size: int, max_blocks: int, tokens_per_block: int) -> None:
        self._tokens_per_block = tokens_per_block
        self._tokens_B = np.zeros(max_batch_size, np.int64)
        self._positions_B = np.zeros(max_batch_size, np.int64)
        self._tables_BW = np.full((max_batch_size, max_blocks), NULL_BLOCK, np.int64)
        self._rows: list[Request | None] = [None] * max_batch_size
        self._requests: Sequence[Request] = ()
        self._room = 0
        self._views: tuple[Tensor, Tensor, Tensor] = (torch.empty(0),) * 3

    def advance(self, requests: Sequence[Request], token_ids: Sequence[int]) -> None:
        """Note the tokens just sampled for the batch that `tensors` last gave out."""
        if requests is self._requests:
            self._tokens_B[: len(requests)] = token_ids
            self._positions_B[: len(requests)] += 1
            self._room -= 1

    def tensors(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """tokens_B, positions_B, block_tables_BW; W is what the longest sequence needs, and the table is contiguous."""
        if requests is not self._requests:
            self._take(requests)
        elif self._room < 0:
            self._cut(len(requests))
        return self._views

    def _take(self, requests: Sequence[Request]) -> None:
        for row, request in enumerate(requests):
            self._tokens_B[row] = request.output_ids[-1]
            self._positions_B[row] = request.num_computed
            if self._rows[row] is not request:
                self._rows[row] = request
                self._tables_BW[row] = NULL_BLOCK
                self._tables_BW[row, : len(request.block_ids)] = request.block_ids
        self._rows[len(requests) :] = [None] * (len(self._rows) - len(requests))
        self._requests = requests
        self._cut(len(requests))

    def _cut(self, batch_size: int) -> None:
        """Choose W for the longest sequence; `_room` counts the steps for which it stays enough."""
        longest = int(self._positions_B[:batch_size].max()) + 1
        width = -(-longest // self._tokens_per_block)
        self._room = width * self._tokens_per_block - longest
        self._views = (
            torch.from_numpy(self._tokens_B[:batch_size]),
            torch.from_numpy(self._positions_B[:batch_size]),
            torch.from_numpy(np.ascontiguousarray(self._tables_BW[:batch_size, :width])),
        )


def prefill_tensors(chunks: Sequence[Chunk], tokens_per_block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens_BT, positions_BT, block_tables_BW, select_N for a prefill.

    select_N are rows of the flattened grid: the last token of every prompt that ends here. When none does, N is 1 and
    the row is the last token of the first chunk, because the programs take no empty selection.
    """
    batch_size, longest = len(chunks), max(chunk.length for chunk in chunks)
    width = max(-(-(chunk.start + chunk.length) // tokens_per_block) for chunk in chunks)
    tokens_BT = np.zeros((batch_size, longest), np.int64)
    positions_BT = np.full((batch_size, longest), PAD_POSITION, np.int64)
    tables_BW = np.full((batch_size, width), NULL_BLOCK, np.int64)
    for row, chunk in enumerate(chunks):
        end = chunk.start + chunk.length
        tokens_BT[row, : chunk.length] = chunk.request.prompt_ids[chunk.start : end]
        positions_BT[row, : chunk.length] = range(chunk.start, end)
        blocks = chunk.request.block_ids[:width]
        tables_BW[row, : len(blocks)] = blocks
    last = [row * longest + chunk.length - 1 for row, chunk in enumerate(chunks)]
    select_N = [row for row, chunk in zip(last, chunks, strict=True) if chunk.completes_prompt] or last[:1]
    return (
        torch.from_numpy(tokens_BT),
        torch.from_numpy(positions_BT),
        torch.from_numpy(tables_BW),
        torch.tensor(select_N),
    )
