"""Random streams of requests, cancellations and steps, and what holds after every one of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.scheduling import VOCAB_SIZE, World, expected_tokens

from trtx.runtime.card import Limits
from trtx.runtime.scheduler import SchedulerSettings

Event = tuple[str, tuple[int, ...]]

limits = st.builds(
    Limits,
    max_batch_size=st.integers(1, 5),
    max_num_tokens=st.integers(1, 40),
    max_seq_len=st.integers(4, 48),
)
every_setting = st.builds(
    SchedulerSettings,
    policy=st.sampled_from(["guaranteed-no-evict", "max-utilization"]),
    chunked_prefill=st.booleans(),
    prefix_reuse=st.booleans(),
)
events = st.lists(
    st.one_of(
        # Tokens of a beginning that others may share, which of three it is, tokens of one's own, longest output, salt.
        st.tuples(
            st.just("add"),
            st.tuples(st.integers(0, 24), st.integers(0, 2), st.integers(0, 12), st.integers(1, 16), st.integers(0, 1)),
        ),
        # The next turn of an earlier conversation: whose, and the longest output.
        st.tuples(st.just("turn"), st.tuples(st.integers(0, 30), st.integers(1, 16))),
        st.tuples(st.just("cancel"), st.tuples(st.integers(0, 30))),
        st.tuples(st.just("step"), st.tuples(st.integers(1, 4))),
    ),
    max_size=40,
)


def play(world: World, stream: list[Event]) -> None:
    for kind, numbers in stream:
        if kind == "add":
            shared, family, own, max_tokens, salt = numbers
            prompt = [(family * 7 + at * 3) % VOCAB_SIZE for at in range(shared)]
            prompt += [(len(world.requests) * 5 + at) % VOCAB_SIZE for at in range(own)]
            world.add(prompt, max_tokens, salt=bytes(salt))
        elif kind == "turn":
            if world.requests:
                earlier = world.requests[numbers[0] % len(world.requests)]
                world.add([*earlier.prompt_ids, *earlier.output_ids, 1], numbers[1])
        elif kind == "cancel":
            world.cancel(numbers[0])
        else:
            for _ in range(numbers[0]):
                world.step()
        world.check()
    world.run()


def hold_answers(world: World) -> None:
    assert world.started == sorted(world.started)
    for request in world.requests:
        expected = expected_tokens(request.prompt_ids, request.params.max_tokens)
        if request.finish_reason == "cancelled":
            assert request.output_ids == expected[: len(request.output_ids)]
        else:
            assert request.output_ids == expected


@settings(max_examples=1500, deadline=None)
@given(limits=limits, num_blocks=st.integers(2, 30), chosen=every_setting, stream=events)
def test_no_block_is_lost_or_shared_wrongly_budgets_hold_and_every_request_ends_in_order_with_its_own_tokens(
    limits: Limits, num_blocks: int, chosen: SchedulerSettings, stream: list[Event]
) -> None:
    world = World(limits, num_blocks, chosen)
    play(world, stream)
    hold_answers(world)


@settings(max_examples=1500, deadline=None)
@given(limits=limits, num_blocks=st.integers(2, 30), chosen=every_setting, stream=events)
def test_the_same_holds_when_every_step_is_planned_before_the_tokens_of_the_last_one_are_known(
    limits: Limits, num_blocks: int, chosen: SchedulerSettings, stream: list[Event]
) -> None:
    world = World(limits, num_blocks, chosen, ahead=True)
    play(world, stream)
    hold_answers(world)


@settings(max_examples=300, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 16)), min_size=2, max_size=12),
    num_blocks=st.integers(12, 16),
    ahead=st.booleans(),
)
def test_a_pool_that_is_too_small_for_all_pauses_requests_and_changes_no_token(
    prompts: list[tuple[int, int]], num_blocks: int, ahead: bool
) -> None:
    bounds = Limits(max_batch_size=8, max_num_tokens=64, max_seq_len=46)
    world = World(bounds, num_blocks, SchedulerSettings("max-utilization", prefix_reuse=False), ahead=ahead)
    for length, max_tokens in prompts:
        world.add([length * 3 % VOCAB_SIZE] * length, max_tokens)
    world.run()
    hold_answers(world)
