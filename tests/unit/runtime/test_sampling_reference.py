"""The sampler beside transformers' own processors of logits, on random logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as reference

from trtx.runtime.adjust import Adjustments
from trtx.runtime.draw import nucleus_least
from trtx.runtime.request import Request, SamplingParams
from trtx.runtime.sampler import sample

STOP = 2


def make_request(
    prompt: list[int], output: list[int], params: SamplingParams, stop: frozenset[int] = frozenset()
) -> Request:
    request = Request(0, prompt, params, stop, 0.0, params.bad_words_ids)
    request.output_ids += output
    return request


def random_logits(seed: int, size: int, spread: float) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, size).astype(np.float32))


def adjusted_by_reference(
    logits_V: Tensor, prompt: list[int], output: list[int], params: SamplingParams, stop: frozenset[int]
) -> Tensor:
    ids, scores = torch.tensor([prompt + output]), logits_V[None]
    scores = reference.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores.clone())
    # https://platform.openai.com/docs/guides/text-generation: transformers has neither of these two.
    counts_V = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=logits_V.numel())
    scores = scores - params.frequency_penalty * counts_V - params.presence_penalty * (counts_V > 0)
    if params.logit_bias:
        scores = reference.SequenceBiasLogitsProcessor([[[i], b] for i, b in params.logit_bias.items()])(ids, scores)
    if params.bad_words_ids:
        scores = reference.NoBadWordsLogitsProcessor([list(ids) for ids in params.bad_words_ids])(ids, scores)
    if stop:
        processor = reference.MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, sorted(stop))
        scores = processor(ids, scores)
    return scores[0]


token = st.integers(0, 39)
tokens = st.lists(token, max_size=12)


@st.composite
def penalized(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        max_tokens=20,
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -1.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -0.5])),
        logit_bias=draw(st.dictionaries(token, st.sampled_from([-100.0, -1.5, 0.5, 5.0]), max_size=3)),
        bad_words_ids=draw(st.lists(st.lists(token, min_size=1, max_size=3), max_size=3)),
        min_tokens=draw(st.integers(0, 6)),
    )


@given(seed=st.integers(0, 10**6), prompt=tokens, output=tokens, params=penalized())
def test_adjusted_logits_are_those_of_transformers(
    seed: int, prompt: list[int], output: list[int], params: SamplingParams
) -> None:
    prompt = [5, 6, 7, *prompt]  # transformers leaves out sequences that are as long as the context
    logits_V, stop = random_logits(seed, 40, 3.0), frozenset([STOP])
    request = make_request(prompt, [], params, stop)
    # The same object through the whole output, as the engine uses it: what occurred is kept from step to step.
    adjustments = Adjustments(request)
    for length in range(len(output) + 1):
        request.output_ids[:] = output[:length]
        found_V = adjustments.apply(logits_V.numpy().copy())
        expected_V = adjusted_by_reference(logits_V, prompt, output[:length], params, stop)
        np.testing.assert_allclose(found_V, expected_V.numpy(), rtol=1e-5, atol=1e-5)


@dataclass
class Scripted:
    """Gives the number it was made with, where a random one is asked for."""

    number: float

    def random(self) -> float:
        return self.number


def draw_evenly(logits_V: Tensor, params: SamplingParams, draws: int) -> np.ndarray:
    """How often each token comes when the random numbers are evenly spread: its probability, to one draw."""
    requests = [make_request([1], [], params) for _ in range(draws)]
    for index, request in enumerate(requests):
        request.random = Scripted((index + 0.5) / draws)  # type: ignore[assignment]
    chosen = [sampled.token_id for sampled in sample(logits_V.expand(draws, -1), requests)]
    return np.bincount(chosen, minlength=logits_V.numel())


def probabilities_by_reference(logits_V: Tensor, params: SamplingParams) -> np.ndarray:
    scores, ids = logits_V[None].double(), torch.tensor([[1]])
    scores = reference.TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k > 0:
        scores = reference.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = reference.TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0:
        scores = reference.MinPLogitsWarper(params.min_p)(ids, scores)
    return scores.softmax(-1)[0].numpy()


cuts = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, -1, 1, 7, 60]),
    top_p=st.sampled_from([0.1, 0.5, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.4]),
)


@pytest.mark.parametrize(("size", "draws"), [(5, 200), (70, 200), (1111, 100), (40_001, 20)])
@given(seed=st.integers(0, 10**6), params=cuts, spread=st.sampled_from([0.5, 2.0, 6.0]))
@settings(max_examples=25, deadline=None)
def test_tokens_come_with_the_probabilities_of_transformers(
    size: int, draws: int, seed: int, params: SamplingParams, spread: float
) -> None:
    logits_V = random_logits(seed, size, spread)
    expected_V = probabilities_by_reference(logits_V, params)
    found_V = draw_evenly(logits_V, params, draws)
    assert np.abs(found_V - draws * expected_V).max() <= 1 + 1e-3 * draws
    assert set(np.flatnonzero(found_V)) <= set(np.flatnonzero(expected_V))


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99, 0.9999])
def test_a_nucleus_of_a_large_vocabulary_is_found_without_sorting_it_all(spread: float, top_p: float) -> None:
    weights_P = random_logits(5, 64_000, spread).exp().numpy()
    falling = np.sort(weights_P.astype(np.float64))[::-1]
    size = int(np.searchsorted(falling.cumsum(), top_p * falling.sum())) + 1
    found = int((weights_P >= nucleus_least(weights_P, top_p)).sum())
    # float32 sums: the last tokens of a wide nucleus weigh next to nothing.
    assert found == pytest.approx(size, rel=2e-3, abs=1)


def test_many_seeded_draws_pass_a_chi_square_test() -> None:
    logits_V = random_logits(3, 1500, 1.5)
    expected_V = logits_V.double().softmax(-1).numpy()
    draws, batch = 20_000, 500
    found_V = np.zeros(1500)
    for start in range(0, draws, batch):
        requests = [make_request([1], [], SamplingParams(seed=seed)) for seed in range(start, start + batch)]
        for sampled in sample(logits_V.expand(batch, -1), requests):
            found_V[sampled.token_id] += 1
    # The 200 most probable tokens, and all others as one.
    likely = np.argsort(-expected_V)[:200]
    expected = draws * np.append(expected_V[likely], 1 - expected_V[likely].sum())
    found = np.append(found_V[likely], draws - found_V[likely].sum())
    chi_square = float(((found - expected) ** 2 / expected).sum())
    # 200 degrees of freedom: mean 200, standard deviation 20.
    assert 140 < chi_square < 267  # 0.1 % on either side


def test_logprobs_are_those_of_the_models_own_distribution() -> None:
    logits_V = random_logits(1, 40_000, 4.0)
    expected_V = logits_V.double().log_softmax(-1)
    params = SamplingParams(logprobs=5, temperature=0.5, seed=1, logit_bias={17: 100.0})
    plain = SamplingParams(temperature=0)
    biased, greedy = sample(logits_V.expand(2, -1), [make_request([1], [], p) for p in (params, plain)])
    assert biased.token_id == 17
    assert biased.logprob == pytest.approx(expected_V[17].item(), abs=1e-4)
    assert biased.rank == int((logits_V > logits_V[17]).sum()) + 1
    values, ids = expected_V.topk(5)
    assert [i for i, _ in biased.top] == ids.tolist()
    assert [p for _, p in biased.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert (greedy.logprob, greedy.rank, greedy.top) == (None, None, ())


def test_more_logprobs_than_tokens_are_all_of_them_and_equal_ones_come_by_id() -> None:
    params = SamplingParams(logprobs=9, temperature=0)
    (sampled,) = sample(torch.tensor([[0.0, 1.0, 1.0]]), [make_request([1], [], params)])
    assert [i for i, _ in sampled.top] == [1, 2, 0]
    assert sampled.rank == 1
