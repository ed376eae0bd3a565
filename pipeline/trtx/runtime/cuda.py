"""The program of an engine on a GPU: one graph of the device for every number of sequences that decode together.

A step that only decodes is one copy to the device and one graph; the tokens it chose stay there, where the next step
finds them, so that it can be started before anybody has seen them. Steps with parts of prompts call the program.

Legend: see staging.py; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trtx.runtime.card import EngineCard
from trtx.runtime.device_sampler import Draws, choose_largest, draw_tokens
from trtx.runtime.inputs import StepInputs
from trtx.runtime.memory import blocks_per_sequence
from trtx.runtime.ranks import Run
from trtx.runtime.staging import Layout, decode_layout, write_inputs

# Blocks of inputs and of tokens on the host: one that a step is being made in, two under way.
RING = 3


@dataclass
class Pending:
    """A step on its way: its tokens, and its logits until the next one is started."""

    _tokens_N: Tensor
    _done: torch.cuda.Event
    logits_NV: Tensor

    @property
    def is_done(self) -> bool:
        """Whether the tokens are there, so that nobody has to wait."""
        return bool(self._done.query())  # type: ignore[no-untyped-call]

    def tokens(self) -> list[int]:
        """Wait for the tokens; BROKEN of device_sampler where the logits are not numbers."""
        self._done.synchronize()
        found: list[int] = self._tokens_N.tolist()
        return found


@dataclass
class _Graph:
    """A captured step of `rows` sequences."""

    layout: Layout
    graph: Any
    logits_NV: Tensor


class CudaPrograms:
    """The compiled program over weights and pools on one device; for one thread at a time.

    `run` takes the program's inputs and the pools. `num_blocks` counts the null block.
    """

    # What may not happen while a graph is captured, in any thread.
    capture_error_mode = "global"

    def __init__(self, card: EngineCard, run: Run, pools: Sequence[Tensor], num_blocks: int) -> None:
        self.card = card
        self.num_blocks = num_blocks
        self._run, self._pools = run, list(pools)
        self._device = pools[0].device
        limits = card.limits
        self._width = blocks_per_sequence(card)
        largest = Layout(limits.max_num_tokens, limits.max_batch_size, self._width, limits.max_batch_size)
        most = max(largest.num_bytes, decode_layout(limits.max_batch_size, self._width).num_bytes)
        self._host = [torch.empty(most, dtype=torch.uint8, pin_memory=True) for _ in range(RING)]
        self._block = torch.zeros(most, dtype=torch.uint8, device=self._device)
        self._found = [torch.empty(limits.max_batch_size, dtype=torch.int64, pin_memory=True) for _ in range(RING)]
        self._last_N = torch.zeros(limits.max_batch_size, dtype=torch.int64, device=self._device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._graphs: dict[int, _Graph] = {}
        self._memory: Any = None
        self._turn = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of sequences that there are graphs for."""
        return graph_sizes(min(self.card.limits.max_batch_size, self.card.limits.max_num_tokens))

    def release(self) -> None:
        """Give the graphs up: what they hold of a group of ranks must go before the group."""
        self._graphs.clear()

    def warm_up(self) -> None:
        """Capture all graphs, the largest first, which the others share their memory with."""
        for rows in reversed(self.sizes):
            self._graph(rows)

    def step(self, *inputs: Tensor) -> Tensor:
        """The plain form of Programs: inputs and logits on the host."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            moved = [tensor.to(self._device).contiguous() for tensor in inputs]
            return self._run([*moved, *self._pools])[0].float().cpu()

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> Pending:
        """Start a step. `sources` are, for its first tokens, rows of the step submitted before, or KNOWN.

        What was submitted two steps ago must have been waited for.
        """
        with torch.cuda.stream(self._stream), torch.inference_mode():
            logits_NV = self._submit_decode(inputs, sources) if _is_decode(inputs) else self._submit(inputs, sources)
            count = inputs.select_N.size
            if draws is not None:
                self._draw(logits_NV, draws)
            found_N = self._found[self._turn][:count]
            found_N.copy_(self._last_N[:count], non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._turn = (self._turn + 1) % RING
        return Pending(found_N, done, logits_NV[:count])

    def _draw(self, logits_NV: Tensor, draws: Draws) -> None:
        """Put the tokens that are drawn in place of the most likely ones."""
        self._last_N.index_copy_(0, draws.rows_R.to(self._device), draw_tokens(logits_NV, draws))

    def _submit_decode(self, inputs: StepInputs, sources: Sequence[int]) -> Tensor:
        rows = next(size for size in self.sizes if size >= inputs.tokens_M.size)
        graph = self._graph(rows)
        self._copy(graph.layout, inputs, sources)
        graph.graph.replay()
        return graph.logits_NV

    def _submit(self, inputs: StepInputs, sources: Sequence[int]) -> Tensor:
        layout = Layout(inputs.tokens_M.size, inputs.context_B.size, inputs.tables_BW.shape[1], inputs.select_N.size)
        self._copy(layout, inputs, sources)
        return self._compute(layout)

    def _copy(self, layout: Layout, inputs: StepInputs, sources: Sequence[int]) -> None:
        host = self._host[self._turn]
        write_inputs(layout, host, inputs, sources)
        size = layout.num_bytes
        self._block[:size].copy_(host[:size], non_blocking=True)

    def _compute(self, layout: Layout) -> Tensor:
        """Logits of the inputs in the device's block; their largest become the last tokens."""
        views = layout.views(self._block)
        sources_M = views.pop("sources_M")
        tokens_M = torch.where(sources_M >= 0, self._last_N[sources_M.clamp(min=0)].clamp(min=0), views["tokens_M"])
        logits_NV = self._run([tokens_M, *list(views.values())[1:], *self._pools])[0]
        self._last_N[: layout.selected].copy_(choose_largest(logits_NV))
        return logits_NV

    def _graph(self, rows: int) -> _Graph:
        if rows not in self._graphs:
            layout = decode_layout(rows, self._width)
            with torch.cuda.stream(self._stream), torch.inference_mode():
                views = layout.views(self._block)
                self._block.zero_()
                views["starts_B1"].copy_(torch.arange(rows + 1))
                views["select_N"].copy_(torch.arange(rows))
                self._compute(layout)  # what is loaded at first use cannot be captured
                self._stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(
                    graph, pool=self._memory, stream=self._stream, capture_error_mode=self.capture_error_mode
                ):
                    logits_NV = self._compute(layout)
            self._memory = graph.pool()
            self._graphs[rows] = _Graph(layout, graph, logits_NV)
        return self._graphs[rows]


def graph_sizes(largest: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then multiples of 16: what lies between costs a few rows of padding."""
    sizes = [1, 2, 4, 8, *range(16, largest, 16)]
    return (*(size for size in sizes if size < largest), largest)


def _is_decode(inputs: StepInputs) -> bool:
    return inputs.tokens_M.size == inputs.context_B.size == inputs.select_N.size
