"""Loads an engine onto a GPU: its weights read by many threads at once, its program, its kernels, its pools."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from trtx.errors import VerificationFailed
from trtx.kernels import ops
from trtx.runtime.card import EngineCard
from trtx.runtime.cuda import CudaPrograms
from trtx.runtime.cuda_memory import CudaMemory, DeviceMemory, make_fitting, memory_errors
from trtx.runtime.cuda_ranks import CudaRank
from trtx.runtime.memory import PoolSize
from trtx.runtime.native import NativeProgram, load_kernels
from trtx.runtime.program import PACKAGE_MODEL, load_weights, make_pools
from trtx.runtime.ranks import Join, ProcessRanks

# Weights pass through pinned memory in pieces: large enough for the bus, small enough for many to be under way.
PIECE_BYTES = 32 << 20
READERS = 12


def load_programs(
    engine: Path, weights: Path, card: EngineCard, num_blocks: int | PoolSize, join: Join | None = None
) -> CudaPrograms:
    """The programs of an engine whose code was verified, on the first GPU, ready to run; `join` as of load_rank.

    `num_blocks` counts the null block, or says how large the pools shall be.

    Raises VerificationFailed when weights or kernels are not the card's, EnvironmentProblem when memory is short.
    """
    memory = CudaMemory()
    if isinstance(num_blocks, PoolSize):
        # Known before the weights are read, as far as it can be.
        num_blocks.count_blocks(card, memory.available)
    moved = copy_weights(load_weights(card, weights))
    if isinstance(num_blocks, PoolSize):
        return make_sized_programs(engine, card, moved, num_blocks, memory, join)
    return make_programs(engine, card, moved, num_blocks, join)


def make_sized_programs(
    engine: Path,
    card: EngineCard,
    weights: Mapping[str, Tensor],
    size: PoolSize,
    memory: DeviceMemory,
    join: Join | None = None,
) -> CudaPrograms:
    """The programs of an engine over weights that are on the device, with as many blocks as fit beside them.

    Several ranks have as many as fit on each of them.

    `memory` is from before the weights were there. Raises EnvironmentProblem when it is short.
    """
    program = load_program(engine, card, weights)
    group = None if join is None else join()
    agree = None if group is None else group.smallest
    return make_fitting(card, size, memory, lambda num_blocks: make_ready(card, program, num_blocks, group), agree)


def make_programs(
    engine: Path, card: EngineCard, weights: Mapping[str, Tensor], num_blocks: int, join: Join | None = None
) -> CudaPrograms:
    """The programs of an engine over weights that are on the device. Raises EnvironmentProblem when memory is short."""
    program = load_program(engine, card, weights)
    group = None if join is None else join()
    with memory_errors("the engine does not fit into the GPU's memory", "end what else uses the GPU"):
        return make_ready(card, program, num_blocks, group)


def load_program(engine: Path, card: EngineCard, weights: Mapping[str, Tensor]) -> NativeProgram:
    """The compiled program with its kernels. Raises VerificationFailed when they are not the card's."""
    if card.kernels is None:
        raise VerificationFailed(
            f"{engine} has no kernels", why="its card names none", fix="build it with `trtx apply`"
        )
    ops.use_namespace(card.kernels.namespace)
    operators = load_kernels(engine / card.kernels.path, card.kernels.namespace)
    operators.use_products(list(card.products))
    with memory_errors("the engine's code does not fit into the GPU's memory", "end what else uses the GPU"):
        return NativeProgram(operators, engine / card.programs["step"].path, PACKAGE_MODEL, weights)


def make_ready(
    card: EngineCard, program: NativeProgram, num_blocks: int, group: ProcessRanks | None = None
) -> CudaPrograms:
    """Programs with pools of so many blocks, all graphs captured."""
    pools = make_pools(card.kv_cache, num_blocks, "cuda")
    if group is None:
        programs = CudaPrograms(card, program, pools, num_blocks)
    else:
        programs = CudaRank(card, program, pools, num_blocks, group)
    programs.warm_up()
    return programs


def copy_weights(mapped: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a mapped file on the first GPU.

    Pieces are read from the file by several threads, each into pinned memory of its own, from which the device takes
    them while the next ones are read.

    Raises EnvironmentProblem when the device has too little memory.
    """
    fix = "end what else uses the GPU, or quantize the model to fewer bits"
    with memory_errors("the weights do not fit into the GPU's memory", fix):
        moved = {name: torch.empty_like(tensor, device="cuda") for name, tensor in mapped.items()}
    pieces = [
        (source[start : start + PIECE_BYTES], target[start : start + PIECE_BYTES])
        for source, target in ((_bytes(mapped[name]), _bytes(moved[name])) for name in mapped)
        for start in range(0, source.numel(), PIECE_BYTES)
    ]
    count = max(1, min(READERS, len(os.sched_getaffinity(0)), len(pieces)))
    buffers: queue.SimpleQueue[tuple[Tensor, torch.cuda.Stream]] = queue.SimpleQueue()
    for _ in range(count):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        buffers.put((torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True), stream))

    # What was made in this mode may be written to in no other, and a thread begins without it.
    is_inference = torch.is_inference_mode_enabled()

    def copy(piece: tuple[Tensor, Tensor]) -> None:
        source, target = piece
        buffer, stream = buffers.get()
        try:
            # The last copy out of this buffer.
            stream.synchronize()
            with torch.inference_mode(is_inference), torch.cuda.stream(stream):
                pinned = buffer[: source.numel()]
                pinned.copy_(source)
                target.copy_(pinned, non_blocking=True)
        finally:
            buffers.put((buffer, stream))

    # Threads of torch's own would stand in each other's way.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(copy, pieces))
    finally:
        torch.set_num_threads(threads)
    torch.cuda.synchronize()
    return moved


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
