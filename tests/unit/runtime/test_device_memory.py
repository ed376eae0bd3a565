"""How a device's memory is shared out, on a device that only counts what is taken of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from support.devices import FakeDevice, FakePending
from support.engines import make_card

from trtx.errors import EnvironmentProblem
from trtx.runtime.card import EngineCard
from trtx.runtime.cuda_memory import MARGIN_BYTES, TRIAL_BLOCKS, find_lack, make_fitting, memory_errors
from trtx.runtime.device_sampler import Draws
from trtx.runtime.inputs import StepInputs
from trtx.runtime.largest import make_largest, make_widest_draws, run_largest
from trtx.runtime.memory import PoolSize, block_bytes, blocks_per_sequence
from trtx.runtime.staging import KNOWN, Layout, write_inputs

MIB = 1 << 20
CARD = make_card(max_batch_size=4, max_num_tokens=50, max_seq_len=64, tokens_per_block=4)
BLOCK = block_bytes(CARD)
WEIGHTS, GRAPHS, PER_TOKEN = 100 * MIB, 7 * MIB, 2 * MIB
# What the largest step takes: two of them are under way.
STEP = 50 * PER_TOKEN


class CountedMemory:
    """A device's memory as numbers: what each thing takes, and a limit that raises torch's own error."""

    def __init__(self, available: int) -> None:
        self.available = available
        self.limit = available
        self.held: dict[int, int] = {}
        self.fixed = 0
        self.most = 0

    def take(self, owner: object, size: int) -> None:
        self.held[id(owner)] = self.held.get(id(owner), 0) + size
        weakref.finalize(owner, self.held.pop, id(owner), None)
        self.most = max(self.most, self.taken())
        if self.taken() > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore words")

    def taken(self) -> int:
        return self.fixed + sum(self.held.values())

    def release(self) -> None:
        """Nothing is kept here."""


class CountedDevice(FakeDevice):
    """A FakeDevice that takes memory: pools and graphs when it is made, and what its largest step needed for good."""

    def __init__(self, card: EngineCard, num_blocks: int, memory: CountedMemory) -> None:
        super().__init__(card, num_blocks)
        self.memory, self.tokens_before, self.steps = memory, 0, 0
        memory.take(self, num_blocks * BLOCK + GRAPHS)

    def submit(self, inputs: StepInputs, sources: Sequence[int], draws: Draws | None = None) -> FakePending:
        assert draws is not None
        assert draws.cuts
        tokens = inputs.tokens_M.size
        self.memory.take(self, max(0, tokens - self.tokens_before) * PER_TOKEN)
        self.tokens_before, self.steps = max(tokens, self.tokens_before), self.steps + 1
        self._pool_PS[:] = 0  # what a context never wrote is garbage on a device, and no error
        self.waiting += 1
        return FakePending(self, torch.zeros(1, 1), [0] * inputs.select_N.size)


def load(memory: CountedMemory, size: PoolSize) -> CountedDevice:
    memory.fixed = WEIGHTS
    return make_fitting(CARD, size, memory, lambda num_blocks: CountedDevice(CARD, num_blocks, memory))


def fraction(share: float) -> PoolSize:
    return PoolSize(kv_cache_bytes=None, memory_fraction=share, weights_bytes=WEIGHTS)


def test_pools_leave_what_the_largest_step_and_the_graphs_take() -> None:
    room = 30 * BLOCK
    memory = CountedMemory(WEIGHTS + GRAPHS + STEP + TRIAL_BLOCKS * BLOCK + MARGIN_BYTES + room)
    device = load(memory, fraction(1.0))
    assert device.num_blocks == 30
    assert device.steps == 2
    assert memory.taken() == WEIGHTS + GRAPHS + STEP + room
    assert memory.most <= memory.available - MARGIN_BYTES


def test_a_fraction_is_of_what_was_free_before_the_weights() -> None:
    memory = CountedMemory(2 * (WEIGHTS + GRAPHS + STEP + TRIAL_BLOCKS * BLOCK + MARGIN_BYTES + 20 * BLOCK))
    assert load(memory, fraction(0.5)).num_blocks == 20


def test_much_memory_gives_no_more_blocks_than_a_full_batch_can_use() -> None:
    assert load(CountedMemory(1 << 40), fraction(0.9)).num_blocks == 4 * 16 + 1


def test_a_device_without_room_for_the_largest_step_is_refused_with_what_makes_it_smaller() -> None:
    memory = CountedMemory(WEIGHTS + GRAPHS + STEP // 2)
    with pytest.raises(EnvironmentProblem, match="does not fit into the GPU's memory") as problem:
        load(memory, fraction(0.9))
    assert problem.value.why == "CUDA out of memory. Tried to allocate 9 GiB."
    assert "max_num_tokens" in problem.value.fix


def test_a_device_with_room_for_the_step_alone_says_what_took_the_rest() -> None:
    memory = CountedMemory(WEIGHTS + GRAPHS + STEP + MARGIN_BYTES + 3 * BLOCK)
    with pytest.raises(EnvironmentProblem, match="max_seq_len 64 needs") as problem:
        load(memory, fraction(1.0))
    assert "for code, the largest step and graphs" in problem.value.why
    assert "smaller max_num_tokens" in problem.value.fix


def test_pools_of_a_size_that_leaves_no_room_for_the_largest_step_are_refused_at_once() -> None:
    size = PoolSize(kv_cache_bytes=40 * BLOCK, memory_fraction=0.9, weights_bytes=WEIGHTS)
    assert load(CountedMemory(WEIGHTS + GRAPHS + STEP + 40 * BLOCK), size).num_blocks == 40
    with pytest.raises(EnvironmentProblem, match="does not fit") as problem:
        load(CountedMemory(WEIGHTS + GRAPHS + STEP + 40 * BLOCK - 1), size)
    assert "smaller size" in problem.value.fix


def test_the_error_that_ended_a_capture_is_found_behind_the_one_that_hides_it() -> None:
    lack = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(EnvironmentProblem) as problem, memory_errors("it does not fit", "use less"):
        try:
            raise lack
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    assert problem.value.why == "CUDA out of memory."
    assert find_lack(RuntimeError("CUDA error: out of memory")) is not None


def test_a_compiled_program_that_does_not_say_why_it_failed_is_asked_through_the_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacks = iter([3, 4])
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_ooms": next(lacks)})
    with (
        pytest.raises(EnvironmentProblem, match="does not fit") as problem,
        memory_errors("it does not fit", "use less"),
    ):
        raise RuntimeError("run_func_( container_handle_, … ) API call failed")
    assert "out of memory" in problem.value.why


def test_other_errors_of_a_device_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), memory_errors("it does not fit", "use less"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("limits", "lengths"),
    [
        ({"max_batch_size": 4, "max_num_tokens": 50, "max_seq_len": 64}, (13, 13, 12, 12)),
        ({"max_batch_size": 4, "max_num_tokens": 500, "max_seq_len": 64}, (64, 64, 64, 64)),
        ({"max_batch_size": 8, "max_num_tokens": 8, "max_seq_len": 64}, (2, 1, 1, 1, 1, 1, 1)),
        ({"max_batch_size": 1, "max_num_tokens": 40, "max_seq_len": 64}, (40,)),
        ({"max_batch_size": 1, "max_num_tokens": 1, "max_seq_len": 64}, (1,)),
    ],
)
def test_the_largest_step_is_one_that_programs_take(limits: dict[str, int], lengths: tuple[int, ...]) -> None:
    device = FakeDevice(make_card(tokens_per_block=4, **limits), num_blocks=65)
    run_largest(device)
    assert device.calls == [lengths, lengths]
    assert device.waiting == 0


def test_the_largest_step_fits_into_the_smallest_pools_and_the_block_of_inputs() -> None:
    inputs, width = make_largest(CARD, TRIAL_BLOCKS), blocks_per_sequence(CARD)
    assert inputs.tables_BW.min() >= 0
    assert inputs.tables_BW.max() < TRIAL_BLOCKS
    assert (inputs.slots_M >= 4).all()
    assert (inputs.slots_M < TRIAL_BLOCKS * 4).all()
    layout = Layout(inputs.tokens_M.size, inputs.context_B.size, inputs.tables_BW.shape[1], inputs.select_N.size)
    largest = Layout(50, 4, width, 4)
    assert layout.num_bytes <= largest.num_bytes
    block = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    write_inputs(layout, block, inputs, ())
    assert set(layout.views(block)["sources_M"].tolist()) == {KNOWN}


def test_the_widest_draws_make_every_temporary() -> None:
    draws = make_widest_draws(3)
    assert draws.cuts
    assert draws.rows_R.tolist() == [0, 1, 2]
