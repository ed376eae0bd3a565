"""How many blocks the pools of a GPU get: what an engine takes besides them is measured first.

An engine with the smallest pools is made ready, graphs included, and runs its largest step with every filter of the
sampler. What the process has taken by then, and a margin, is what the pools must leave. The engine that stays is made
with pools of that size and runs the step once more, so that its memory is claimed before the first request comes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from trtx.errors import EnvironmentProblem
from trtx.runtime.card import EngineCard
from trtx.runtime.largest import Submitting, run_largest
from trtx.runtime.memory import PoolSize

# The null block and one more.
TRIAL_BLOCKS = 2
# Steps of other sizes cut the allocator's memory otherwise than the largest one did.
MARGIN_BYTES = 256 << 20

Programs = TypeVar("Programs", bound=Submitting)


class DeviceMemory(Protocol):
    """The memory of a device: bytes that were free before anything of an engine was loaded, and what became of them."""

    available: int

    def taken(self) -> int:
        """Bytes taken since then."""
        ...

    def release(self) -> None:
        """Give back what nothing uses any more."""
        ...


class CudaMemory:
    """The memory of the current GPU, of which this process takes from now on.

    Raises EnvironmentProblem when the GPU is so full that it cannot even be asked.
    """

    def __init__(self) -> None:
        with memory_errors("the GPU has no memory left", "end what else uses the GPU"):
            self.release()
            self.available: int = torch.cuda.mem_get_info()[0]

    def taken(self) -> int:
        torch.cuda.synchronize()
        return self.available - int(torch.cuda.mem_get_info()[0])

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Measured:
    """What a trial took of `available` bytes: all that an engine takes but its pools."""

    available: int
    taken: int

    def count_blocks(self, card: EngineCard, size: PoolSize) -> int:
        """Blocks of the pools that leave what was taken, and a margin. Raises EnvironmentProblem as plan_num_blocks."""
        working = max(0, self.taken - size.weights_bytes) + MARGIN_BYTES
        return size.count_blocks(card, self.available, working)


def make_fitting(
    card: EngineCard,
    size: PoolSize,
    memory: DeviceMemory,
    make: Callable[[int], Programs],
    agree: Callable[[int], int] | None = None,
) -> Programs:
    """Programs with pools as large as the memory allows; `make` gives programs of so many blocks, ready to run.

    Several ranks do this side by side, and `agree` gives each of them the number that fits on all.

    Where the size of the pools is asked for, nothing is measured, but the largest step is run all the same. Raises
    EnvironmentProblem when there is no room for that step or for one sequence of max_seq_len.
    """
    with memory_errors("the engine does not fit into the GPU's memory", _how_to_fit(size)):
        if size.kv_cache_bytes is not None:
            num_blocks = size.count_blocks(card)
        else:
            num_blocks = measure(memory, make).count_blocks(card, size)
            if agree is not None:
                num_blocks = agree(num_blocks)
        programs = make(num_blocks)
        run_largest(programs)
    return programs


def measure(memory: DeviceMemory, make: Callable[[int], Submitting]) -> Measured:
    """What an engine with the smallest pools has taken after its largest step. Its weights and code stay."""
    trial = make(TRIAL_BLOCKS)
    run_largest(trial)
    measured = Measured(memory.available, memory.taken())
    del trial
    memory.release()
    return measured


@contextmanager
def memory_errors(what: str, fix: str) -> Iterator[None]:
    """Turn a GPU's lack of memory into an EnvironmentProblem; other errors pass."""
    before = count_lacks()
    try:
        yield
    except RuntimeError as error:
        lack = find_lack(error)
        if lack is None and count_lacks() == before:
            raise
        why = "CUDA out of memory, in the compiled program" if lack is None else str(lack).splitlines()[0]
        raise EnvironmentProblem(what, why=why, fix=fix) from error


def count_lacks() -> int:
    """How often torch's allocator has found no memory. A compiled program says only that a call of its failed."""
    # Of a device that is not used yet torch says nothing.
    return int(torch.cuda.memory_stats().get("num_ooms", 0))


def find_lack(error: BaseException) -> BaseException | None:
    """The error, of this one and those it came from, that says that a GPU has no memory left.

    Libraries say it by cudaMalloc's message alone, and the end of a capture hides the error that ended it.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.cuda.OutOfMemoryError) or "CUDA error: out of memory" in str(found):
            return found
        found = found.__cause__ or found.__context__
    return None


def _how_to_fit(size: PoolSize) -> str:
    pools = "lower the memory fraction" if size.kv_cache_bytes is None else "give the KV cache a smaller size"
    return (
        f"end what else uses the GPU; {pools}; or rebuild the engine with a smaller max_num_tokens or max_batch_size,"
        " which make its largest step smaller"
    )
