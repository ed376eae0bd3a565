"""The inputs of a step as one block of bytes, so that they reach a device in one copy.

Legend: M tokens, B sequences, W blocks per table, N selected rows; R rows of a step that decodes only (M = B = N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trtx.runtime.inputs import StepInputs

# Compiled code loads vectors from the start of every input.
ALIGNMENT_BYTES = 256

# Name → type, in the order of Programs.step, and then which row of the last step gave each sequence's token.
FIELDS: dict[str, torch.dtype] = {
    "tokens_M": torch.int64,
    "positions_M": torch.int64,
    "slots_M": torch.int64,
    "tables_BW": torch.int32,
    "starts_B1": torch.int32,
    "context_B": torch.int32,
    "select_N": torch.int64,
    "sources_M": torch.int64,
}

# A token that the host knows.
KNOWN = -1


@dataclass(frozen=True)
class Layout:
    """Where the inputs of a step of these sizes lie in the block."""

    tokens: int
    sequences: int
    width: int
    selected: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "tokens_M": (self.tokens,),
            "positions_M": (self.tokens,),
            "slots_M": (self.tokens,),
            "tables_BW": (self.sequences, self.width),
            "starts_B1": (self.sequences + 1,),
            "context_B": (self.sequences,),
            "select_N": (self.selected,),
            "sources_M": (self.tokens,),
        }

    @property
    def num_bytes(self) -> int:
        return sum(_padded(_size(shape, FIELDS[name])) for name, shape in self.shapes.items())

    def views(self, block: Tensor) -> dict[str, Tensor]:
        """The inputs inside a block, uint8 of at least `num_bytes`; they share its memory."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            size = _size(shape, FIELDS[name])
            views[name] = block[start : start + size].view(FIELDS[name]).view(shape)
            start += _padded(size)
        return views


def decode_layout(rows: int, width: int) -> Layout:
    """The layout of a step in which `rows` sequences decode."""
    return Layout(rows, rows, width, rows)


def write_inputs(layout: Layout, block: Tensor, inputs: StepInputs, sources: Sequence[int]) -> None:
    """Put a step's inputs into a block on the host. Where the layout is larger, the rest is padding.

    Padding is a token at position 0 of a sequence without context, whose key goes to the null block.
    """
    arrays = {name: view.numpy() for name, view in layout.views(block).items()}
    tokens, sequences = inputs.tokens_M.size, inputs.context_B.size
    width = inputs.tables_BW.shape[1]
    arrays["tokens_M"][:tokens], arrays["tokens_M"][tokens:] = inputs.tokens_M, 0
    arrays["positions_M"][:tokens], arrays["positions_M"][tokens:] = inputs.positions_M, 0
    arrays["slots_M"][:tokens], arrays["slots_M"][tokens:] = inputs.slots_M, 0
    arrays["tables_BW"][:sequences, :width], arrays["tables_BW"][sequences:] = inputs.tables_BW, 0
    arrays["tables_BW"][:sequences, width:] = 0
    starts_B1 = arrays["starts_B1"]
    starts_B1[: sequences + 1] = inputs.starts_B1
    starts_B1[sequences + 1 :] = np.arange(tokens + 1, tokens + layout.sequences - sequences + 1)
    arrays["context_B"][:sequences], arrays["context_B"][sequences:] = inputs.context_B, 0
    selected = inputs.select_N.size
    arrays["select_N"][:selected], arrays["select_N"][selected:] = inputs.select_N, 0
    arrays["sources_M"][: len(sources)], arrays["sources_M"][len(sources) :] = sources, KNOWN


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
