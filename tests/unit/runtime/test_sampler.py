from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from trtx.runtime import sampler
from trtx.runtime.request import Request, RequestRefused, SamplingParams
from trtx.runtime.sampler import LogitsBroken


def make_request(**params: object) -> Request:
    return Request(0, [1], SamplingParams(**params), frozenset(), 0.0)  # type: ignore[arg-type]


def sample(logits_NV: Tensor, requests: list[Request]) -> list[int]:
    return [sampled.token_id for sampled in sampler.sample(logits_NV, requests)]


def count(logits_V: Tensor, draws: int = 4000, **params: object) -> Counter[int]:
    requests = [make_request(seed=seed, **params) for seed in range(draws)]
    return Counter(sample(logits_V.expand(draws, -1), requests))


LOGITS_V = torch.tensor([0.6, 0.3, 0.08, 0.02]).log()


def test_temperature_zero_takes_the_most_likely_token() -> None:
    assert sample(torch.stack([LOGITS_V, LOGITS_V.flip(0)]), [make_request(temperature=0)] * 2) == [0, 3]


def test_tokens_are_drawn_by_their_probability() -> None:
    found = count(LOGITS_V)
    for token, probability in enumerate((0.6, 0.3, 0.08, 0.02)):
        # Four standard deviations of a share of 4000 draws are at most 0.032.
        assert found[token] / 4000 == pytest.approx(probability, abs=0.032)


def test_temperature_divides_the_logits() -> None:
    found = count(LOGITS_V, temperature=0.5)
    squares = [p * p for p in (0.6, 0.3, 0.08, 0.02)]
    assert found[0] / 4000 == pytest.approx(squares[0] / sum(squares), abs=0.032)


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow() -> None:
    assert count(LOGITS_V * 1e4, draws=50, temperature=1e-300) == {0: 50}


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_leaves_the_k_most_likely(top_k: int) -> None:
    assert set(count(LOGITS_V, top_k=top_k)) == set(range(top_k))


def test_a_top_k_beyond_the_vocabulary_changes_nothing() -> None:
    assert count(LOGITS_V, draws=500, top_k=100) == count(LOGITS_V, draws=500)


@pytest.mark.parametrize(("top_p", "left"), [(0.01, {0}), (0.6, {0}), (0.61, {0, 1}), (0.9, {0, 1}), (0.95, {0, 1, 2})])
def test_top_p_leaves_the_fewest_tokens_that_reach_the_mass(top_p: float, left: set[int]) -> None:
    exact_V = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64).log().float()
    # A little slack for float32 logits: the boundary itself is one ulp wide.
    assert set(count(exact_V, top_p=top_p - 1e-6)) == left


def test_top_p_counts_only_what_top_k_left() -> None:
    # Of 0.6 and 0.3, the first has two thirds.
    assert set(count(LOGITS_V, top_k=2, top_p=0.66)) == {0}
    assert set(count(LOGITS_V, top_k=2, top_p=0.68)) == {0, 1}


def test_equal_probabilities_stay_or_go_together() -> None:
    assert set(count(torch.tensor([1.0, 0.0, 0.0, -9.0]), top_k=2)) == {0, 1, 2}


def test_one_batch_mixes_all_kinds_of_requests() -> None:
    requests = [
        make_request(temperature=0),
        make_request(top_k=1, seed=1),
        make_request(top_p=0.1, seed=2),
        make_request(seed=3),
    ]
    tokens = sample(LOGITS_V.expand(4, -1), requests)
    assert tokens[:3] == [0, 0, 0]


def test_a_seeded_request_draws_the_same_whatever_runs_beside_it() -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(40, 3, 50)
    alone, crowded = make_request(seed=5, top_p=0.9), make_request(seed=5, top_p=0.9)
    others = [make_request(seed=1, top_k=3), make_request(temperature=0)]
    expected = [sample(step[:1], [alone])[0] for step in logits_NV]
    found = [sample(step, [crowded, *others])[0] for step in logits_NV]
    assert found == expected
    assert len(set(expected)) > 5


def test_requests_without_a_seed_differ() -> None:
    flat_NV = torch.zeros(2, 100_000)
    first, second = sample(flat_NV, [make_request(), make_request()])
    assert first != second


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_and_no_token(bad: float) -> None:
    logits_NV = torch.zeros(2, 4)
    logits_NV[1, 2] = bad
    with pytest.raises(LogitsBroken):
        sample(logits_NV, [make_request(temperature=0)] * 2)


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -2},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"stop": ("a", "")},
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(params: dict[str, object]) -> None:
    with pytest.raises(RequestRefused) as refused:
        SamplingParams(**params)  # type: ignore[arg-type]
    assert refused.value.param in params
