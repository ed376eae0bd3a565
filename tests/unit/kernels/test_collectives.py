"""Operators that meet other ranks: in the group of the thread that calls them, and in no other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import BrokenBarrierError

import pytest
import torch
from torch import Tensor

from trtx.kernels import ops
from trtx.kernels.collectives import use_group
from trtx.runtime.ranks import Meeting, ThreadRanks, in_group


class Echo:
    """A group of one name, which every answer bears."""

    def __init__(self, name: float) -> None:
        self.name = name

    def all_reduce(self, x: Tensor) -> Tensor:
        return x + self.name

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat([x, x + self.name], -1)


def test_outside_of_a_group_there_is_nobody_to_meet() -> None:
    with pytest.raises(RuntimeError, match=r"inside trtx.kernels.collectives"):
        ops.all_reduce(torch.zeros(2))


def test_groups_are_those_of_the_innermost_program_of_a_thread() -> None:
    with use_group(Echo(1)):
        with use_group(Echo(2)):
            assert ops.all_reduce(torch.zeros(1)).item() == 2
        assert ops.all_gather(torch.zeros(1), 2).tolist() == [0, 1]
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="use_group only"):
            pool.submit(ops.all_reduce, torch.zeros(1)).result()
        assert ops.all_reduce(torch.zeros(1)).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_add_up_and_put_side_by_side_what_each_brings(dtype: torch.dtype) -> None:
    meeting = Meeting(3)

    def run(rank: int) -> tuple[Tensor, Tensor]:
        with meeting.turn, use_group(ThreadRanks(meeting, rank)):
            x = torch.full((2, 2), 10.0**rank, dtype=dtype)
            return ops.all_reduce(x), ops.all_gather(x, 3)

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(run, range(3)))
    for total, side_by_side in answers:
        assert torch.equal(total, torch.full((2, 2), 111.0, dtype=dtype))
        assert side_by_side.tolist() == [[1, 1, 10, 10, 100, 100]] * 2


def test_a_thread_that_leaves_is_not_waited_for() -> None:
    meeting = Meeting(2)

    def run() -> None:
        with meeting.turn:
            meeting.exchange(0, torch.zeros(1))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run)
        meeting.leave()
        with pytest.raises(BrokenBarrierError):
            waiting.result(timeout=10)
    assert meeting.turn.acquire(blocking=False)


def test_a_program_raises_what_a_meeting_raised_and_not_that_compiled_code_failed() -> None:
    class Gone(Echo):
        def all_reduce(self, x: Tensor) -> Tensor:
            raise RuntimeError("the other rank is gone")

    def compiled(inputs: object) -> list[Tensor]:
        try:
            return [ops.all_reduce(torch.zeros(1))]
        except RuntimeError:
            raise RuntimeError("an API call failed") from None

    with pytest.raises(RuntimeError, match="the other rank is gone"):
        in_group(compiled, Gone(0))([])
    with pytest.raises(RuntimeError, match="an API call failed"):
        in_group(lambda inputs: [compiled_alone()], Echo(0))([])


def compiled_alone() -> Tensor:
    raise RuntimeError("an API call failed")
