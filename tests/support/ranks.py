"""Ranks for tests: loaders of programs that are not compiled, which processes of ranks find by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from support.devices import FakeDevice, FakePending
from torch import Tensor

from trtx.backends.inductor.module import make_eager
from trtx.errors import EnvironmentProblem
from trtx.kernels.collectives import use_group
from trtx.runtime.card import EngineCard
from trtx.runtime.cuda_ranks import DRAWN_ELSEWHERE
from trtx.runtime.device_sampler import Draws
from trtx.runtime.inputs import StepInputs
from trtx.runtime.program import EagerPrograms, load_weights
from trtx.runtime.ranks import Join, ProcessRanks


class EagerRank:
    """EagerPrograms whose module meets the other ranks."""

    def __init__(self, programs: EagerPrograms, group: ProcessRanks) -> None:
        self.card, self.num_blocks = programs.card, programs.num_blocks
        self._programs, self._group = programs, group

    def step(self, *inputs: Tensor) -> Tensor:
        with use_group(self._group):
            return self._programs.step(*inputs)


def load_eager(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> EagerRank:
    """One rank, not compiled."""
    programs = make_eager(card, load_weights(card, weights), num_blocks)
    return EagerRank(programs, join())


def refuse(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> EagerRank:
    """Ranks other than 0 have an error with a known cause."""
    if card.rank.rank:
        raise EnvironmentProblem("no room", why="it is full", fix="make some")
    join()
    raise AssertionError("ranks met that could not")


def break_down(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> EagerRank:
    """Ranks other than 0 have an error that nobody thought of."""
    if card.rank.rank:
        raise ValueError("nobody thought of this")
    join()
    raise AssertionError("ranks met that could not")


def leave(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> EagerRank:
    """Ranks other than 0 end in the middle of a sentence."""
    if card.rank.rank:
        print("and then", flush=True)
        raise SystemExit(7)
    join()
    raise AssertionError("ranks met that could not")


class Stuck(FakeDevice):
    """A device whose rank 0 waits for something that no error reaches, while the others end."""

    def step(self, *inputs: Tensor) -> Tensor:
        if self.card.rank.rank:
            raise SystemExit(7)
        time.sleep(60)
        raise AssertionError("nobody ended this process")


def get_stuck(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> Stuck:
    """One rank of an engine that gets stuck in its first step."""
    join()
    return Stuck(card, num_blocks)


class RankDevice(FakeDevice):
    """A device that is none, whose ranks tell one another their tokens after every step."""

    def __init__(self, card: EngineCard, num_blocks: int, group: ProcessRanks) -> None:
        super().__init__(card, num_blocks)
        self._group = group

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> RankDevicePending:
        pending = super().submit(inputs, sources, None if draws is DRAWN_ELSEWHERE else draws)
        tokens_N = torch.tensor(self.last)
        if draws is not None:
            self._group.broadcast(tokens_N)
        each_RN = self._group.all_gather(tokens_N).view(self._group.size, -1)
        assert bool((each_RN == each_RN[0]).all()), f"the ranks have other tokens: {each_RN.tolist()}"
        self.last = tokens_N.tolist()
        return RankDevicePending(self, pending.logits_NV, self.last)


class RankDevicePending(FakePending):
    """Done a moment later."""

    def __init__(self, device: FakeDevice, logits_NV: Tensor, tokens: list[int]) -> None:
        super().__init__(device, logits_NV, tokens)
        self._done_s = time.monotonic() + 0.001

    @property
    def is_done(self) -> bool:
        return time.monotonic() > self._done_s


def load_device(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> RankDevice:
    """One rank of a device that is none."""
    return RankDevice(card, num_blocks, join())


def load_agreed(engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join) -> RankDevice:
    """One rank of a device on which 40 blocks fit, and 30 on the second one."""
    group = join()
    return RankDevice(card, group.smallest(30 if card.rank.rank else 40), group)
