"""Random streams of requests, cancellations and steps, and what holds after every one of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from trtx.runtime.blocks import NULL_BLOCK, BlockPool
from trtx.runtime.card import Limits
from trtx.runtime.request import Request, RequestRefused, SamplingParams
from trtx.runtime.scheduler import Batch, Prefill, Scheduler

STOP, GO = 1, 2

limits = st.builds(
    Limits,
    max_batch_size=st.integers(1, 5),
    max_num_tokens=st.integers(4, 40),
    max_seq_len=st.integers(4, 48),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40), st.integers(1, 16)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        # A step in which the n-th sampled token is a stop token.
        st.tuples(st.just("step"), st.integers(0, 9), st.just(0)),
    ),
    max_size=60,
)


@dataclass
class World:
    scheduler: Scheduler
    requests: list[Request] = field(default_factory=list)
    started: list[int] = field(default_factory=list)

    def add(self, prompt: int, max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        request = Request(len(self.requests), [7] * prompt, params, frozenset([STOP]), 0.0)
        try:
            self.scheduler.check(request)
        except RequestRefused:
            return
        self.requests.append(request)
        self.scheduler.add(request)

    def cancel(self, index: int) -> None:
        if self.requests:
            self.scheduler.finish(self.requests[index % len(self.requests)], "cancelled")

    def step(self, stop_at: int) -> None:
        batch = self.scheduler.schedule()
        if batch is None:
            assert not self.scheduler.waiting
            assert not self.scheduler.running
            return
        self.hold_budgets(batch)
        if isinstance(batch, Prefill):
            self.started += [chunk.request.id for chunk in batch.chunks if chunk.start == 0]
        tokens = [STOP if index == stop_at else GO for index in range(len(batch.sampled))]
        self.scheduler.commit(batch, tokens)

    def hold_budgets(self, batch: Batch) -> None:
        bounds = self.scheduler.limits
        if isinstance(batch, Prefill):
            lengths = [chunk.length for chunk in batch.chunks]
            assert len(lengths) * max(lengths) <= bounds.max_num_tokens
            assert len(lengths) <= bounds.max_batch_size
            assert all(chunk.start == chunk.request.num_computed for chunk in batch.chunks)
        else:
            assert 1 <= len(batch.requests) <= bounds.max_batch_size
            # Decode works on sequences whose prompt is done, and has a place for the token it writes.
            for request in batch.requests:
                assert request.num_computed >= len(request.prompt_ids)
                assert request.num_computed < len(request.block_ids) * self.scheduler.tokens_per_block

    def check(self) -> None:
        self.scheduler.check_integrity()
        held = [block for request in self.scheduler.running for block in request.block_ids]
        assert len(held) == len(set(held))
        assert NULL_BLOCK not in held
        assert all(not request.block_ids for request in self.requests if request.finished)


@settings(max_examples=300, deadline=None)
@given(limits=limits, num_blocks=st.integers(2, 30), events=events)
def test_no_block_is_lost_or_shared_budgets_hold_all_requests_end_and_start_in_order(
    limits: Limits, num_blocks: int, events: list[tuple[str, int, int]]
) -> None:
    world = World(Scheduler(BlockPool(num_blocks), limits, tokens_per_block=4))
    for kind, first, second in events:
        if kind == "add":
            world.add(first, second)
        else:
            getattr(world, kind)(first)
        world.check()
    # What has started ends, and what waits starts: a bound on the steps that are still needed.
    remaining = sum(len(r.prompt_ids) + r.params.max_tokens for r in world.requests if not r.finished)
    for _ in range(remaining):
        world.step(stop_at=99)
        world.check()
    assert all(request.finished for request in world.requests)
    assert world.scheduler.pool.num_used == 0
    assert world.started == sorted(world.started)
    for request in world.requests:
        assert len(request.output_ids) <= request.params.max_tokens
        if request.finish_reason == "length":
            assert len(request.output_ids) == request.params.max_tokens
