"""The programs of an engine of several ranks, as one: every step runs in all of their processes.

Rank 0 is the process of the engine, which plans steps and chooses tokens. The others get the same inputs, run the same
program over their own shares, and meet rank 0 inside it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trtx.errors import EnvironmentProblem
from trtx.runtime.card import EngineCard
from trtx.runtime.device_sampler import Draws
from trtx.runtime.inputs import StepInputs
from trtx.runtime.memory import PoolSize, available_bytes
from trtx.runtime.program import Programs
from trtx.runtime.rank_job import LOADER, RunStep, SubmitStep, find_loader
from trtx.runtime.rank_processes import RankProcesses
from trtx.runtime.ranks import TIMEOUT_S

# How often a device is asked whether a step is done. The next step is under way by then.
POLL_S = 5e-5


class RankPrograms:
    """Rank 0's programs and the processes of the others. They end with this object."""

    def __init__(self, own: Programs, processes: RankProcesses) -> None:
        self.card = own.card
        self.num_blocks = own.num_blocks
        self._own: Any = own
        self._processes = processes
        self._busy = threading.Lock()
        weakref.finalize(self, _end, own, processes)

    def when_broken(self, tell: Callable[[Exception], None]) -> None:
        """See Engine: of a rank that fails."""
        self._processes.when_failed(tell)

    def step(self, *inputs: Tensor) -> Tensor:
        """See Programs; for one thread at a time, else RuntimeError. Raises the error of a rank that failed."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("an engine's programs may be called by one thread at a time")
        try:
            self._processes.send(RunStep(tuple(tensor.numpy() for tensor in inputs)))
            with self._processes.meeting():
                logits_NV: Tensor = self._own.step(*inputs)
            return logits_NV
        finally:
            self._busy.release()


class DeviceRankPrograms(RankPrograms):
    """RankPrograms whose steps are started and not waited for; see trtx.runtime.cuda."""

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> RankPending:
        """See DevicePrograms. Raises the error of a rank that failed."""
        self._processes.send(SubmitStep(inputs, tuple(sources), draws is not None))
        with self._processes.meeting():
            return RankPending(self._own.submit(inputs, sources, draws), self._processes)


class RankPending:
    """A step on its way in all ranks. Waiting ends when one of them does."""

    def __init__(self, own: Any, processes: RankProcesses) -> None:
        self._own, self._processes = own, processes

    @property
    def logits_NV(self) -> Tensor:
        logits_NV: Tensor = self._own.logits_NV
        return logits_NV

    def tokens(self) -> list[int]:
        """See Pending. Raises the error of a rank that failed."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self._own.is_done:
            self._processes.check()
            if time.monotonic() > deadline:
                raise EnvironmentProblem(
                    f"the GPUs of the engine's ranks did not finish a step within {TIMEOUT_S:g} s",
                    why="a rank hangs, or its GPU does",
                    fix="load the engine again, and report this if it stays",
                )
            time.sleep(POLL_S)
        self._processes.check()
        tokens: list[int] = self._own.tokens()
        return tokens


def load_ranks(
    engine: Path, weights: Path, card: EngineCard, num_blocks: int | PoolSize, loader: str = LOADER
) -> RankPrograms:
    """Start the other ranks of an engine that was verified, load all shares side by side, and let them meet.

    `loader` names the function that loads one rank, here and there. Raises what it raises, in any rank.
    """
    if isinstance(num_blocks, PoolSize) and card.compiled_for.device == "cpu":
        # All share the memory of this machine; GPUs agree when they have measured theirs.
        num_blocks = num_blocks.count_blocks(card, available_bytes() // card.rank.tensor)
    processes = RankProcesses(engine, weights, card, num_blocks, loader)
    try:
        with processes.meeting():
            own = find_loader(loader)(engine, weights, card.for_rank(0), num_blocks, processes.join)
            processes.wait_for("ready")
    except BaseException:
        processes.close()
        raise
    kind = DeviceRankPrograms if hasattr(own, "submit") else RankPrograms
    return kind(own, processes)


def _end(own: Any, processes: RankProcesses) -> None:
    if release := getattr(own, "release", None):
        release()
    processes.close()
