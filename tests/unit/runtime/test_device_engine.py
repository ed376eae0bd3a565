"""The loop over a device beside the plain one: the same tokens, whatever is known when a step is started."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.devices import FakeDevice
from support.engines import FakePrograms, expected_tokens, make_card, make_engine, make_tokenizer
from unit.runtime.test_overlap import events, every_setting, play

from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.device_sampler import BROKEN, choose_largest, draw_tokens, make_draws
from trtx.runtime.draw import draw, draw_top_k
from trtx.runtime.request import Request, RequestRefused, SamplingParams
from trtx.runtime.sampler import LogitsBroken

GREEDY = SamplingParams(max_tokens=12, temperature=0)


def make_device_engine(**limits: int) -> DeviceEngine:
    return DeviceEngine(FakeDevice(make_card(**limits)), make_tokenizer())


def test_a_device_gives_every_prompt_its_own_tokens() -> None:
    engine = make_device_engine()
    prompts = [[1, 2, 3], [7] * 9, [40, 41], [5], [6, 6, 6, 6, 6, 6]]
    found = engine.generate(prompts, GREEDY)
    assert [list(one.token_ids) for one in found] == [expected_tokens([*p], 12) for p in prompts]
    engine.check_integrity()


def test_a_step_is_started_before_the_tokens_of_the_last_one_are_asked_for() -> None:
    engine = make_device_engine()
    device = engine._programs
    assert isinstance(device, FakeDevice)
    engine.add_request(engine.make_request([1, 2, 3], GREEDY))
    engine.step()
    assert device.waiting == 1
    assert len(device.calls) == 2


@settings(max_examples=150, deadline=None)
@given(num_blocks=st.integers(14, 40), max_num_tokens=st.integers(4, 40), chosen=every_setting, stream=events)
def test_both_loops_give_the_same_tokens(num_blocks, max_num_tokens, chosen, stream) -> None:  # type: ignore[no-untyped-def]
    greedy = [(kind, number, None if params is None else _greedy(params)) for kind, number, params in stream]
    card = make_card(max_num_tokens=max_num_tokens)
    plain = make_engine(FakePrograms(card, num_blocks), settings=chosen)
    device = DeviceEngine(FakeDevice(card, num_blocks), make_tokenizer(), settings=chosen)
    expected, _ = play(plain, greedy)
    found, outputs = play(device, greedy)
    for one, other in zip(expected, found, strict=True):
        if "cancelled" not in (one.finish_reason, other.finish_reason):
            assert (one.output_ids, one.finish_reason) == (other.output_ids, other.finish_reason)
            assert [token for output in outputs[other.id] for token in output.token_ids] == other.output_ids


def _greedy(params: SamplingParams) -> SamplingParams:
    """Drawn tokens are compared by their distribution, elsewhere; penalties and logprobs stay, the prompt's do not."""
    return replace(params, temperature=0.0, prompt_logprobs=None, max_tokens=max(1, params.max_tokens))


def test_a_top_k_beyond_any_vocabulary_cuts_nothing() -> None:
    engine = make_device_engine()
    engine.add_request(engine.make_request([1, 2, 3], SamplingParams(max_tokens=2, temperature=1.0, top_k=10**20)))
    while engine.has_work:
        engine.step()
    engine.check_integrity()


def test_probabilities_of_the_prompt_are_refused_and_say_what_to_do() -> None:
    engine = make_device_engine()
    with pytest.raises(RequestRefused, match="probabilities of the prompt") as refused:
        engine.make_request([1, 2, 3], SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert refused.value.param == "prompt_logprobs"
    assert "without prompt_logprobs" in refused.value.fix
    assert not engine.has_work


def test_logits_that_are_not_numbers_are_an_error() -> None:
    engine = make_device_engine()
    device = engine._programs
    assert isinstance(device, FakeDevice)
    device._logits = lambda position, table: torch.full((262,), float("nan"))  # type: ignore[method-assign]
    engine.add_request(engine.make_request([1, 2, 3], GREEDY))
    with pytest.raises(LogitsBroken):
        while engine.has_work:
            engine.step()


def test_the_largest_logit_is_chosen_and_broken_rows_are_marked() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [float("nan"), 1.0, 2.0], [float("inf"), 0.0, 0.0]])
    assert choose_largest(logits).tolist() == [1, BROKEN, BROKEN]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=1, temperature=0.8, seed=1),
        SamplingParams(max_tokens=1, temperature=1.3, top_p=0.7, seed=1),
        SamplingParams(max_tokens=1, temperature=1.0, min_p=0.2, seed=1),
        SamplingParams(max_tokens=1, temperature=1.0, top_k=5, seed=1),
        SamplingParams(max_tokens=1, temperature=0.6, top_k=7, top_p=0.8, min_p=0.05, seed=1),
    ],
)
def test_a_device_draws_from_the_distribution_that_the_host_draws_from(params: SamplingParams) -> None:
    torch.manual_seed(0)
    row = torch.randn(40) * 2
    count = 4000
    requests = [
        Request(i, [1], SamplingParams(**{**_fields(params), "seed": i}), frozenset(), 0.0) for i in range(count)
    ]
    draws = make_draws(requests)
    assert draws is not None
    found = np.bincount(draw_tokens(row.expand(count, -1), draws).numpy(), minlength=40) / count
    numbers, values = np.random.default_rng(1).random(count), row.numpy()
    if params.top_k:
        tokens = [draw_top_k(values, float(values.max()), params, number) for number in numbers]
    else:
        tokens = draw([values] * count, [float(values.max())] * count, [params] * count, numbers.tolist())
    expected = np.bincount(tokens, minlength=40) / count
    assert set(np.flatnonzero(found)) - set(np.flatnonzero(expected)) <= set(np.flatnonzero(found < 0.002))
    assert np.abs(found - expected).sum() / 2 < 0.06


def _fields(params: SamplingParams) -> dict[str, object]:
    from dataclasses import fields

    return {field.name: getattr(params, field.name) for field in fields(params)}
