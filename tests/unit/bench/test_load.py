from __future__ import annotations

from itertools import islice

import pytest
from support.engines import EOS_ID, FakePrograms, make_card, make_engine, make_tokenizer
from torch import Tensor

from trtx.bench.load import make_prompts, run_load
from trtx.runtime.engine import Engine
from trtx.runtime.request import RequestRefused


class TickingClock:
    """Every look at it is one second later."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def first_prompts(engine: Engine, count: int, seed: str = "1") -> list[list[int]]:
    return list(islice(make_prompts(engine, input_tokens=6, seed=seed), count))


def test_prompts_are_the_same_for_the_same_seed_and_hold_no_special_token() -> None:
    engine = make_engine()
    prompts = first_prompts(engine, 50)
    assert prompts == first_prompts(engine, 50)
    assert prompts != first_prompts(engine, 50, seed="2")
    assert not {token for prompt in prompts for token in prompt} & engine.tokenizer.special_ids
    assert len({tuple(prompt) for prompt in prompts}) == 50


def test_every_request_generates_exactly_the_tokens_asked_for_even_past_an_end_token() -> None:
    engine = make_engine()
    result = run_load(engine, first_prompts(engine, 20), output_tokens=20, concurrency=3)
    assert [len(timing.token_times_s) for timing in result.timings] == [20] * 20
    assert result.output_tokens == 400
    assert result.failures == []


def test_never_more_requests_are_in_flight_than_the_concurrency() -> None:
    seen: list[int] = []

    class Watching(FakePrograms):
        def step(self, *inputs: Tensor) -> Tensor:
            seen.append(len(inputs[3]))
            return super().step(*inputs)

    engine = Engine(Watching(make_card()), make_tokenizer())
    run_load(engine, first_prompts(engine, 9), output_tokens=5, concurrency=3)
    assert max(seen) == 3


def test_a_load_smaller_than_its_concurrency_ends_too() -> None:
    engine = make_engine()
    assert len(run_load(engine, first_prompts(engine, 2), output_tokens=3, concurrency=8).timings) == 2


def test_times_are_taken_from_sending_to_each_token() -> None:
    engine = Engine(FakePrograms(make_card()), make_tokenizer(), clock=TickingClock())
    (timing,) = run_load(engine, first_prompts(engine, 1), output_tokens=4, concurrency=1).timings
    # One look when the request is made, one when it starts, one after every step.
    assert (timing.first_token_s, timing.gaps_s) == (2.0, [1.0, 1.0, 1.0])


def test_progress_is_told_once_for_every_request() -> None:
    engine = make_engine()
    ended: list[int] = []
    run_load(engine, first_prompts(engine, 7), output_tokens=3, concurrency=2, on_end=lambda: ended.append(1))
    assert len(ended) == 7


def test_a_request_that_ends_early_is_a_failure() -> None:
    engine = make_engine()
    made = engine.make_request

    def ends_at_the_end_token(prompt, params):  # type: ignore[no-untyped-def]
        request = made(prompt, params)
        request.stop_ids = frozenset(range(EOS_ID + 1))
        return request

    engine.make_request = ends_at_the_end_token  # type: ignore[method-assign]
    result = run_load(engine, first_prompts(engine, 1), output_tokens=4, concurrency=1)
    assert result.failures == ["ended by stop after 1 of 4 tokens"]


def test_a_load_beyond_the_limits_is_refused() -> None:
    engine = make_engine()
    with pytest.raises(RequestRefused, match="takes at most 64"):
        run_load(engine, first_prompts(engine, 1), output_tokens=59, concurrency=1)
