from __future__ import annotations

import pytest

from trtx.runtime.batch import Batch
from trtx.runtime.blocks import BlockPool
from trtx.runtime.card import Limits
from trtx.runtime.request import Request, RequestRefused, SamplingParams
from trtx.runtime.scheduler import Scheduler, SchedulerSettings

STOP = 99
MAX_UTILIZATION = SchedulerSettings("max-utilization")
NO_REUSE = SchedulerSettings("guaranteed-no-evict", prefix_reuse=False)


def make_scheduler(
    *,
    num_blocks: int = 33,
    max_batch_size: int = 4,
    max_num_tokens: int = 32,
    max_seq_len: int = 64,
    settings: SchedulerSettings = NO_REUSE,
) -> Scheduler:
    limits = Limits(max_batch_size=max_batch_size, max_num_tokens=max_num_tokens, max_seq_len=max_seq_len)
    return Scheduler(BlockPool(num_blocks), limits, 4, settings)


def make_request(name: int, prompt: int | list[int], max_tokens: int = 4, salt: bytes = b"") -> Request:
    ids = [1] * prompt if isinstance(prompt, int) else prompt
    return Request(name, ids, SamplingParams(max_tokens=max_tokens), frozenset([STOP]), 0.0, salt=salt)


def add(scheduler: Scheduler, *requests: Request) -> None:
    for request in requests:
        scheduler.check(request)
        scheduler.add(request)


def run_step(scheduler: Scheduler, token: int = 5) -> Batch | None:
    batch = scheduler.schedule()
    scheduler.check_integrity()
    if batch is not None:
        scheduler.commit(batch, batch.sampled, [token] * len(batch.sampled))
    scheduler.check_integrity()
    return batch


def run_to_end(scheduler: Scheduler) -> None:
    while run_step(scheduler):
        pass
    assert not scheduler.running
    assert not scheduler.waiting


def shape(batch: Batch | None) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Who decodes, and (who, start, length) of every chunk."""
    assert batch is not None
    return [r.id for r in batch.decodes], [(c.request.id, c.start, c.length) for c in batch.chunks]


def test_waiting_prompts_are_computed_together_and_then_decoded_together() -> None:
    scheduler = make_scheduler()
    add(scheduler, *(make_request(name, prompt=5) for name in range(3)))
    assert shape(run_step(scheduler)) == ([], [(0, 0, 5), (1, 0, 5), (2, 0, 5)])
    assert shape(run_step(scheduler)) == ([0, 1, 2], [])


def test_decode_goes_first_and_prompts_fill_what_it_leaves_of_the_budget() -> None:
    scheduler = make_scheduler(max_num_tokens=8)
    add(scheduler, make_request(0, 3), make_request(1, 2))
    run_step(scheduler)
    add(scheduler, make_request(2, 9), make_request(3, 4))
    assert shape(run_step(scheduler)) == ([0, 1], [(2, 0, 6)])
    assert shape(run_step(scheduler)) == ([0, 1], [(2, 6, 3), (3, 0, 3)])
    assert shape(run_step(scheduler)) == ([0, 1, 2], [(3, 3, 1)])


def test_a_prompt_in_chunks_gives_one_token_with_the_last_of_them() -> None:
    scheduler = make_scheduler(max_num_tokens=8)
    request = make_request(0, prompt=20)
    add(scheduler, request)
    lengths = []
    while not request.output_ids:
        batch = run_step(scheduler)
        assert batch is not None
        lengths.append([chunk.length for chunk in batch.chunks])
    assert lengths == [[8], [8], [4]]
    assert shape(run_step(scheduler)) == ([0], [])


def test_without_chunks_a_prompt_waits_for_a_step_that_takes_all_of_it() -> None:
    scheduler = make_scheduler(max_num_tokens=8, settings=SchedulerSettings(chunked_prefill=False, prefix_reuse=False))
    add(scheduler, make_request(0, 3, max_tokens=3), make_request(1, 8), make_request(2, 1))
    assert shape(run_step(scheduler)) == ([], [(0, 0, 3)])
    assert shape(run_step(scheduler)) == ([0], [])
    assert shape(run_step(scheduler)) == ([0], [])
    assert shape(run_step(scheduler)) == ([], [(1, 0, 8)])


def test_without_chunks_a_prompt_longer_than_any_step_is_refused() -> None:
    scheduler = make_scheduler(max_num_tokens=8, settings=SchedulerSettings(chunked_prefill=False))
    scheduler.check(make_request(0, 8))
    with pytest.raises(RequestRefused, match="9 tokens, and this engine computes at most 8 in a step") as refused:
        scheduler.check(make_request(0, 9))
    assert refused.value.code == "context_length_exceeded"


def test_without_chunks_a_paused_request_that_outgrew_a_step_is_cut_all_the_same() -> None:
    settings = SchedulerSettings("max-utilization", chunked_prefill=False, prefix_reuse=False)
    scheduler = make_scheduler(num_blocks=8, max_num_tokens=8, settings=settings)
    add(scheduler, make_request(0, 6, max_tokens=16), second := make_request(1, 6, max_tokens=16))
    while not second.num_preemptions:
        run_step(scheduler)
    assert second.num_tokens > 8
    run_to_end(scheduler)
    assert second.output_ids == [5] * 16


def test_no_more_requests_run_than_a_step_has_tokens_so_that_all_of_them_decode() -> None:
    scheduler = make_scheduler(max_num_tokens=2, max_batch_size=4)
    add(scheduler, *(make_request(name, 1) for name in range(4)))
    run_step(scheduler)
    assert shape(run_step(scheduler)) == ([0, 1], [])


def test_a_small_request_does_not_overtake_a_large_one_that_has_to_wait() -> None:
    scheduler = make_scheduler(num_blocks=9)
    add(scheduler, *(make_request(name, prompt, max_tokens=1) for name, prompt in enumerate((16, 24, 1))))
    started = []
    while batch := run_step(scheduler):
        started += [chunk.request.id for chunk in batch.chunks if chunk.start == 0]
    assert started == [0, 1, 2]


def test_under_guaranteed_no_evict_a_request_starts_only_when_blocks_for_all_its_tokens_are_free() -> None:
    scheduler = make_scheduler(num_blocks=5)
    # 8 + 5 - 1 tokens are ever stored: 3 blocks of 4, taken one after another and promised from the start.
    first, second = make_request(0, 8, max_tokens=5), make_request(1, 4, max_tokens=5)
    add(scheduler, first, second)
    run_step(scheduler)
    assert (len(first.block_ids), first.num_promised, second.block_ids) == (2, 1, [])
    while not first.finished:
        assert run_step(scheduler).num_paused == 0  # type: ignore[union-attr]
    run_step(scheduler)
    assert (first.block_ids, len(second.block_ids)) == ([], 1)


def test_under_max_utilization_a_request_starts_with_the_blocks_of_its_prompt_and_one_spare_for_all_that_run() -> None:
    for num_blocks, num_started in ((6, 2), (5, 1)):
        scheduler = make_scheduler(num_blocks=num_blocks, settings=MAX_UTILIZATION)
        add(scheduler, make_request(0, 7, max_tokens=9), make_request(1, [2] * 7, max_tokens=9))
        assert shape(run_step(scheduler)) == ([], [(0, 0, 7), (1, 0, 7)][:num_started])


def test_under_max_utilization_the_youngest_makes_room_and_goes_on_where_it_was() -> None:
    scheduler = make_scheduler(num_blocks=6, settings=SchedulerSettings("max-utilization", prefix_reuse=False))
    first, second = make_request(0, 7, max_tokens=6), make_request(1, 7, max_tokens=6)
    add(scheduler, first, second)
    run_step(scheduler)
    run_step(scheduler)
    batch = run_step(scheduler)
    assert shape(batch) == ([0], [])
    assert batch is not None
    assert batch.num_paused == 1
    assert (second.output_ids, second.block_ids, second.num_preemptions) == ([5, 5], [], 1)
    assert scheduler.waiting[0] is second
    while not first.finished:
        run_step(scheduler)
    # What it had generated is a part of what is computed again.
    assert shape(run_step(scheduler)) == ([], [(1, 0, 9)])
    run_to_end(scheduler)
    assert second.output_ids == [5] * 6


def test_a_paused_request_is_the_next_to_start_whoever_came_meanwhile() -> None:
    scheduler = make_scheduler(num_blocks=6, settings=MAX_UTILIZATION)
    add(scheduler, make_request(0, 7, max_tokens=6), make_request(1, [2] * 7, max_tokens=6), make_request(2, 1))
    while not scheduler.waiting or scheduler.waiting[0].id != 1:
        run_step(scheduler)
    assert [request.id for request in scheduler.waiting] == [1, 2]


def test_a_stop_token_ends_a_request_and_frees_its_blocks_in_the_same_step() -> None:
    scheduler = make_scheduler()
    request = make_request(0, 5, max_tokens=9)
    add(scheduler, request)
    run_step(scheduler)
    run_step(scheduler, token=STOP)
    assert (request.finish_reason, scheduler.pool.num_used) == ("stop", 0)
    assert run_step(scheduler) is None


def test_the_same_tuple_of_decoding_requests_comes_back_until_somebody_joins_or_leaves() -> None:
    scheduler = make_scheduler()
    add(scheduler, make_request(0, 4, max_tokens=9))
    run_step(scheduler)
    first = run_step(scheduler)
    second = run_step(scheduler)
    assert first is not None
    assert second is not None
    assert second.decodes is first.decodes
    add(scheduler, make_request(1, 4, max_tokens=9))
    run_step(scheduler)
    assert shape(run_step(scheduler)) == ([0, 1], [])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_cancelled_request_gives_its_blocks_back_at_once(steps: int) -> None:
    scheduler = make_scheduler()
    request, other = make_request(0, 6), make_request(1, 6)
    add(scheduler, request, other)
    for _ in range(steps):
        run_step(scheduler)
    scheduler.finish(request, "cancelled")
    scheduler.finish(request, "stop")
    scheduler.check_integrity()
    assert (request.finish_reason, request.block_ids) == ("cancelled", [])
    run_to_end(scheduler)
    assert len(other.output_ids) == 4


def test_a_prompt_that_begins_like_an_earlier_one_computes_only_the_rest() -> None:
    scheduler = make_scheduler(settings=SchedulerSettings())
    prompt = list(range(10))
    add(scheduler, make_request(0, prompt))
    run_to_end(scheduler)
    later = make_request(1, [*prompt[:9], 77, 78])
    add(scheduler, later)
    batch = run_step(scheduler)
    assert shape(batch) == ([], [(1, 8, 3)])
    assert batch is not None
    assert (batch.num_cached, later.num_cached) == (8, 8)


def test_requests_that_run_together_share_blocks_and_count_them_once() -> None:
    # Room for 4 + 2 × 1 blocks, not for 2 × 5.
    scheduler = make_scheduler(num_blocks=7, settings=SchedulerSettings("guaranteed-no-evict"))
    first, second = (make_request(name, [*range(16), 30 + name], max_tokens=2) for name in range(2))
    add(scheduler, first)
    run_step(scheduler)
    add(scheduler, second)
    assert shape(run_step(scheduler)) == ([0], [(1, 16, 1)])
    assert first.block_ids == []
    assert scheduler.pool.num_used == 5


def test_a_prompt_that_is_known_to_the_last_token_still_computes_that_one() -> None:
    scheduler = make_scheduler(settings=SchedulerSettings())
    add(scheduler, make_request(0, [1, 2, 3, 4, 5, 6, 7, 8], max_tokens=1))
    run_to_end(scheduler)
    # Only full blocks before the last token are shared: it writes into a block of its own.
    add(scheduler, make_request(1, [1, 2, 3, 4, 5, 6, 7, 8], max_tokens=1))
    assert shape(run_step(scheduler)) == ([], [(1, 4, 4)])
    add(scheduler, make_request(2, [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=1))
    assert shape(run_step(scheduler)) == ([], [(2, 8, 1)])


def test_what_a_request_generated_is_found_by_the_next_turn_of_its_conversation() -> None:
    scheduler = make_scheduler(settings=SchedulerSettings())
    first = make_request(0, [1, 2, 3], max_tokens=6)
    add(scheduler, first)
    run_to_end(scheduler)
    add(scheduler, make_request(1, [1, 2, 3, *first.output_ids, 50]))
    assert shape(run_step(scheduler)) == ([], [(1, 8, 2)])


def test_nothing_is_shared_between_salts_or_without_reuse() -> None:
    for settings, salt in ((SchedulerSettings(), b"other"), (NO_REUSE, b"")):
        scheduler = make_scheduler(settings=settings)
        add(scheduler, make_request(0, 10))
        run_to_end(scheduler)
        add(scheduler, make_request(1, 10, salt=salt))
        assert shape(run_step(scheduler)) == ([], [(1, 0, 10)])


def test_equal_prompts_that_come_together_wait_for_the_first_one_to_be_computed() -> None:
    scheduler = make_scheduler(settings=SchedulerSettings())
    add(scheduler, *(make_request(name, list(range(17))) for name in range(3)))
    assert shape(run_step(scheduler)) == ([], [(0, 0, 17)])
    assert shape(run_step(scheduler)) == ([0], [(1, 16, 1), (2, 16, 1)])


def test_a_paused_request_finds_its_own_blocks_again_while_nobody_needed_them() -> None:
    scheduler = make_scheduler(num_blocks=6, settings=MAX_UTILIZATION)
    first, second = make_request(0, [7] * 4, max_tokens=9), make_request(1, list(range(8)), max_tokens=12)
    add(scheduler, first, second)
    while second.num_preemptions == 0:
        run_step(scheduler)
    while not second.block_ids:
        batch = run_step(scheduler)
    assert batch is not None
    assert batch.num_cached > 0
    assert second.num_cached == 0  # of the prompt, when it first started
    run_to_end(scheduler)
    assert second.output_ids == [5] * 12


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
    for settings in (SchedulerSettings(), MAX_UTILIZATION):
        scheduler = make_scheduler(num_blocks=9, max_seq_len=64, settings=settings)
        assert scheduler.max_request_tokens == 33
        add(scheduler, make_request(0, 30, max_tokens=3))
        run_to_end(scheduler)
        assert scheduler.pool.num_used == 0


def test_the_integrity_check_finds_blocks_that_nobody_holds() -> None:
    scheduler = make_scheduler()
    scheduler.pool.allocate(1)
    with pytest.raises(AssertionError, match="not those of the running requests"):
        scheduler.check_integrity()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, r: s.pool.share(r.block_ids[-1:]), "others may read"),
        (lambda s, r: s.pool.keep(r.block_ids[-1], b"x" * 32), "others may read"),
        (lambda s, r: r.digests.__setitem__(0, b"x" * 32), "block of other tokens"),
        (lambda s, r: setattr(r, "num_computed", 99), "more tokens than its blocks hold"),
        (lambda s, r: setattr(r, "num_promised", 9), "promised"),
        (lambda s, r: s.waiting.append(r), "waiting request holds blocks"),
        (lambda s, r: setattr(r, "finish_reason", "stop"), "ended is queued"),
        (lambda s, r: r.block_ids.append(r.block_ids[0]), "has one twice"),
    ],
)
def test_the_integrity_check_finds_damage(damage: object, message: str) -> None:
    scheduler = make_scheduler(settings=SchedulerSettings())
    request = make_request(0, list(range(6)))
    add(scheduler, request)
    run_step(scheduler)
    damage(scheduler, request)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=message):
        scheduler.check_integrity()
