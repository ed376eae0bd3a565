from __future__ import annotations

import pytest

from trtx.runtime.blocks import BlockPool
from trtx.runtime.card import Limits
from trtx.runtime.request import Request, RequestRefused, SamplingParams
from trtx.runtime.scheduler import Decode, Prefill, Scheduler

STOP = 99


def make_scheduler(
    *, num_blocks: int = 33, max_batch_size: int = 4, max_num_tokens: int = 32, max_seq_len: int = 64
) -> Scheduler:
    limits = Limits(max_batch_size=max_batch_size, max_num_tokens=max_num_tokens, max_seq_len=max_seq_len)
    return Scheduler(BlockPool(num_blocks), limits, tokens_per_block=4)


def make_request(name: int, prompt: int, max_tokens: int = 4) -> Request:
    return Request(name, [1] * prompt, SamplingParams(max_tokens=max_tokens), frozenset([STOP]), 0.0)


def run_step(scheduler: Scheduler, token: int = 5) -> Prefill | Decode | None:
    batch = scheduler.schedule()
    if batch is not None:
        scheduler.commit(batch, [token] * len(batch.sampled))
    scheduler.check_integrity()
    return batch


def test_waiting_prompts_are_prefilled_together_and_then_decoded_together() -> None:
    scheduler = make_scheduler()
    for name in range(3):
        scheduler.add(make_request(name, prompt=5))
    first, second = run_step(scheduler), run_step(scheduler)
    assert isinstance(first, Prefill)
    assert [chunk.length for chunk in first.chunks] == [5, 5, 5]
    assert isinstance(second, Decode)
    assert [request.id for request in second.requests] == [0, 1, 2]


def test_a_prefill_stays_within_max_num_tokens_padding_included() -> None:
    scheduler = make_scheduler(max_num_tokens=24)
    for name, prompt in enumerate((8, 6, 10, 3)):
        scheduler.add(make_request(name, prompt))
    # The third prompt would make a grid of 3 × 10.
    assert [chunk.request.id for chunk in run_step(scheduler).chunks] == [0, 1]
    assert [chunk.request.id for chunk in run_step(scheduler).chunks] == [2, 3]


def test_a_prompt_that_would_leave_the_grid_mostly_padding_waits_one_step() -> None:
    scheduler = make_scheduler(max_num_tokens=64)
    for name, prompt in enumerate((2, 2, 30)):
        scheduler.add(make_request(name, prompt))
    assert [chunk.request.id for chunk in run_step(scheduler).chunks] == [0, 1]
    assert [chunk.request.id for chunk in run_step(scheduler).chunks] == [2]


def test_a_prompt_longer_than_max_num_tokens_is_prefilled_in_chunks_and_gives_one_token() -> None:
    scheduler = make_scheduler(max_num_tokens=8)
    request = make_request(0, prompt=20)
    scheduler.add(request)
    chunks = [run_step(scheduler).chunks[0] for _ in range(3)]
    assert [(chunk.start, chunk.length) for chunk in chunks] == [(0, 8), (8, 8), (16, 4)]
    assert len(request.output_ids) == 1
    assert isinstance(run_step(scheduler), Decode)


def test_the_last_chunk_of_a_long_prompt_shares_its_step_with_the_next_prompt() -> None:
    scheduler = make_scheduler(max_num_tokens=8)
    for name, prompt in enumerate((12, 4)):
        scheduler.add(make_request(name, prompt))
    run_step(scheduler)
    assert [(chunk.request.id, chunk.length) for chunk in run_step(scheduler).chunks] == [(0, 4), (1, 4)]


def test_a_request_starts_only_when_blocks_for_all_its_tokens_are_free() -> None:
    scheduler = make_scheduler(num_blocks=5)
    # 8 + 5 - 1 tokens are ever stored: 3 blocks of 4.
    first, second = make_request(0, 8, max_tokens=5), make_request(1, 4, max_tokens=5)
    scheduler.add(first)
    scheduler.add(second)
    run_step(scheduler)
    assert (len(first.block_ids), second.block_ids) == (3, [])
    while not first.finished:
        run_step(scheduler)
    run_step(scheduler)
    assert (first.block_ids, len(second.block_ids)) == ([], 2)


def test_a_small_request_does_not_overtake_a_large_one_that_has_to_wait() -> None:
    scheduler = make_scheduler(num_blocks=9)
    for name, prompt in enumerate((16, 24, 1)):
        scheduler.add(make_request(name, prompt, max_tokens=1))
    started = []
    while scheduler.waiting or scheduler.running:
        batch = run_step(scheduler)
        started += [chunk.request.id for chunk in batch.chunks]
    assert started == [0, 1, 2]


def test_a_stop_token_ends_a_request_and_frees_its_blocks_in_the_same_step() -> None:
    scheduler = make_scheduler()
    request = make_request(0, 5, max_tokens=9)
    scheduler.add(request)
    run_step(scheduler)
    run_step(scheduler, token=STOP)
    assert (request.finish_reason, scheduler.pool.num_used) == ("stop", 0)
    assert run_step(scheduler) is None


def test_the_same_decode_batch_comes_back_until_somebody_joins_or_leaves() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, 4, max_tokens=9))
    run_step(scheduler)
    first = run_step(scheduler)
    assert run_step(scheduler) is first
    scheduler.add(make_request(1, 4, max_tokens=9))
    run_step(scheduler)
    assert run_step(scheduler) is not first


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_cancelled_request_gives_its_blocks_back_at_once(steps: int) -> None:
    scheduler = make_scheduler()
    request, other = make_request(0, 6), make_request(1, 6)
    scheduler.add(request)
    scheduler.add(other)
    for _ in range(steps):
        run_step(scheduler)
    scheduler.finish(request, "cancelled")
    scheduler.finish(request, "stop")
    scheduler.check_integrity()
    assert (request.finish_reason, request.block_ids) == ("cancelled", [])
    while not other.finished:
        run_step(scheduler)
    assert len(other.output_ids) == 4


def test_requests_beyond_the_limits_are_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(num_blocks=9, max_seq_len=64)
    with pytest.raises(RequestRefused, match="60 prompt tokens and max_tokens 5 make 65") as refused:
        scheduler.check(make_request(0, 60, max_tokens=5))
    assert (refused.value.param, refused.value.code) == ("max_tokens", "context_length_exceeded")
    with pytest.raises(RequestRefused, match="takes at most 64") as refused:
        scheduler.check(make_request(0, 64, max_tokens=1))
    assert refused.value.param == "prompt"
    with pytest.raises(RequestRefused, match="need 9 KV-cache blocks, and the pool has 8"):
        scheduler.check(make_request(0, 30, max_tokens=4))
    with pytest.raises(RequestRefused, match="no tokens"):
        scheduler.check(make_request(0, 0))


def test_the_longest_request_that_the_limits_allow_is_accepted_and_ends() -> None:
    scheduler = make_scheduler(num_blocks=9, max_seq_len=64)
    assert scheduler.max_request_tokens == 33
    request = make_request(0, 30, max_tokens=3)
    scheduler.check(request)
    scheduler.add(request)
    while not request.finished:
        run_step(scheduler)
    assert scheduler.pool.num_used == 0


def test_the_integrity_check_finds_blocks_that_nobody_holds() -> None:
    scheduler = make_scheduler()
    scheduler.pool.allocate(1)
    with pytest.raises(AssertionError, match="not those of the running requests"):
        scheduler.check_integrity()
