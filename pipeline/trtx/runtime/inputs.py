"""From a planned batch to the tensors that the program takes.

Legend: M tokens of a step, all its sequences flattened; B sequences, the decoding ones first; D of them decode;
W blocks per table; N rows of M whose logits are wanted; S tokens per block.

Arrays are made anew for every step or never written again, because the step before may still be running on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trtx.runtime.batch import Batch
from trtx.runtime.blocks import NULL_BLOCK
from trtx.runtime.request import Request

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class StepInputs:
    """The inputs of one step; `tokens_M` of requests that decode count after `fill` only."""

    tokens_M: Int64s
    positions_M: Int64s
    slots_M: Int64s
    tables_BW: Int32s
    starts_B1: Int32s
    context_B: Int32s
    select_N: Int64s

    def fill(self, decodes: Sequence[Request]) -> None:
        """Put in the last token of every request that decodes. One that ended meanwhile may have none: any will do."""
        self.tokens_M[: len(decodes)] = [(request.output_ids or (0,))[-1] for request in decodes]

    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of `Programs.step`; they share the arrays' memory."""
        return (
            torch.from_numpy(self.tokens_M),
            torch.from_numpy(self.positions_M),
            torch.from_numpy(self.slots_M),
            torch.from_numpy(self.tables_BW),
            torch.from_numpy(self.starts_B1),
            torch.from_numpy(self.context_B),
            torch.from_numpy(self.select_N),
        )


class InputBuilder:
    """Makes the inputs of step after step; every batch planned must pass through it, in order.

    While the same requests decode and nothing else happens, a step costs three vector operations more than its copies.
    """

    def __init__(self, max_batch_size: int, max_blocks: int, tokens_per_block: int) -> None:
        self._size = tokens_per_block
        # A row of the table for every request of the last step; the list of blocks that it has, and how many of them
        # are written. A request that was paused has another list.
        self._table = np.full((max_batch_size, max_blocks), NULL_BLOCK, np.int32)
        self._blocks: list[list[int] | None] = [None] * max_batch_size
        self._written = [0] * max_batch_size
        self._row_of: dict[Request, int] = {}
        self._unused = list(range(max_batch_size))
        # The last step, when it only decoded.
        self._steady: tuple[Request, ...] | None = None
        self._last: StepInputs

    def make(self, batch: Batch) -> StepInputs:
        """The inputs of a batch that was just planned, before the next one is."""
        if batch.chunks:
            self._steady = None
            self._last = self._build(batch)
        elif self._steady is batch.decodes:
            self._last = self._advance(batch.decodes)
        else:
            self._steady = batch.decodes
            self._last = self._build(batch)
        return self._last

    def _advance(self, decodes: Sequence[Request]) -> StepInputs:
        """One token further for every sequence."""
        last, size = self._last, self._size
        positions_B = last.positions_M + 1
        slots_B = last.slots_M + 1
        tables_BW = last.tables_BW
        fresh = (positions_B % size == 0).nonzero()[0].tolist()
        if fresh:
            for at in fresh:
                request = decodes[at]
                self._write_row(self._row_of[request], request)
                slots_B[at] = request.block_ids[-1] * size
            tables_BW = self._tables([self._row_of[request] for request in decodes], int(positions_B.max()) + 1)
        tokens_B = np.empty_like(last.tokens_M)
        return StepInputs(
            tokens_B, positions_B, slots_B, tables_BW, last.starts_B1, last.context_B + np.int32(1), last.select_N
        )

    def _build(self, batch: Batch) -> StepInputs:
        decodes, chunks, size = batch.decodes, batch.chunks, self._size
        rows = self._take_rows([*decodes, *(chunk.request for chunk in chunks)])
        num_decodes = len(decodes)
        lengths_B = np.array([1] * num_decodes + [chunk.length for chunk in chunks])
        # A planned token counts as computed already.
        first_B = np.array([r.num_computed - 1 for r in decodes] + [chunk.start for chunk in chunks])
        starts_B1 = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths_B, out=starts_B1[1:])
        positions_M = np.arange(starts_B1[-1]) + np.repeat(first_B - starts_B1[:-1], lengths_B)
        blocks_M = self._table[np.repeat(rows, lengths_B), positions_M // size]
        context_B = first_B + lengths_B
        tokens_M = np.empty_like(positions_M)
        for chunk, start in zip(chunks, starts_B1[num_decodes:].tolist(), strict=False):
            tokens_M[start : start + chunk.length] = chunk.request.token_ids(chunk.start, chunk.start + chunk.length)
        select_N = starts_B1[1:] - 1
        if chunks:
            # The program takes no empty selection; the logits of a row that nobody asked for are left alone.
            wanted = [*range(num_decodes), *(num_decodes + at for at, chunk in enumerate(chunks) if chunk.is_last)]
            scored = [
                np.arange(start, start + chunk.num_scored)
                for chunk, start in zip(chunks, starts_B1[num_decodes:].tolist(), strict=False)
                if chunk.num_scored
            ]
            select_N = np.concatenate([select_N[wanted], *scored]) if scored else select_N[wanted or [0]]
        return StepInputs(
            tokens_M,
            positions_M,
            blocks_M.astype(np.int64) * size + positions_M % size,
            self._tables(rows, int(context_B.max())),
            starts_B1.astype(np.int32),
            context_B.astype(np.int32),
            select_N,
        )

    def _tables(self, rows: list[int], num_tokens: int) -> Int32s:
        """A copy of these rows, as wide as the longest sequence needs."""
        return self._table[rows, : -(-num_tokens // self._size)]

    def _take_rows(self, requests: list[Request]) -> list[int]:
        """The rows of these requests, up to date; those of all others are given up."""
        row_of = self._row_of
        for request in row_of.keys() - set(requests):
            self._unused.append(row_of.pop(request))
        rows = []
        for request in requests:
            row = row_of.get(request)
            if row is None:
                row = row_of[request] = self._unused.pop()
            if self._blocks[row] is not request.block_ids:
                self._blocks[row] = request.block_ids
                self._table[row] = NULL_BLOCK
                self._written[row] = 0
            self._write_row(row, request)
            rows.append(row)
        return rows

    def _write_row(self, row: int, request: Request) -> None:
        written, num_blocks = self._written[row], len(request.block_ids)
        if written < num_blocks:
            self._table[row, written:num_blocks] = request.block_ids[written:]
            self._written[row] = num_blocks
