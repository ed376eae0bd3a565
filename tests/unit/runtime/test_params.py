from __future__ import annotations

import math

import pytest
from support.engines import EOS_ID, make_engine, make_tokenizer

from trtx.runtime.admission import find_banned_ids
from trtx.runtime.request import RequestRefused, SamplingParams


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("temperature", math.nan),
        ("top_k", -2),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.5),
        ("frequency_penalty", math.nan),
        ("logit_bias", {1: math.inf}),
        ("n", 0),
        ("best_of", 3),
        ("logprobs", -1),
        ("prompt_logprobs", -1),
        ("stop", ["a", ""]),
        ("bad_words", ""),
        ("bad_words_ids", [[]]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(param: str, value: object) -> None:
    with pytest.raises(RequestRefused, match=param) as refused:
        SamplingParams(**{param: value})  # type: ignore[arg-type]
    assert refused.value.param == param


def test_stop_strings_need_text() -> None:
    with pytest.raises(RequestRefused, match="detokenize"):
        SamplingParams(stop="a", detokenize=False)


def test_one_of_a_list_stands_for_the_list_and_none_for_an_empty_one() -> None:
    assert SamplingParams(stop="ab", stop_token_ids=3) == SamplingParams(stop=["ab"], stop_token_ids=[3])  # type: ignore[arg-type]
    assert SamplingParams(stop=None, bad_words=None, logit_bias=None) == SamplingParams()  # type: ignore[arg-type]
    assert SamplingParams(best_of=1) != SamplingParams(n=2)


def test_choices_have_seeds_that_follow_one_another() -> None:
    several = SamplingParams(n=3, seed=5, top_k=7, best_of=3).choices()
    assert [(one.n, one.seed, one.top_k, one.best_of) for one in several] == [
        (1, 5, 7, None),
        (1, 6, 7, None),
        (1, 7, 7, None),
    ]
    assert [one.seed for one in SamplingParams(n=2).choices()] == [None, None]


def test_several_choices_are_several_requests() -> None:
    with pytest.raises(RequestRefused, match="n must be 1"):
        make_engine().make_request([1], SamplingParams(n=2))


def test_bad_words_are_banned_with_and_without_a_space_before() -> None:
    tokenizer = make_tokenizer()

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    params = SamplingParams(bad_words=["ab", " c"], bad_words_ids=[[1, 2], encode("ab")])
    assert find_banned_ids(params, tokenizer) == [(1, 2), encode("ab"), encode(" ab"), encode(" c")]


def test_an_end_token_does_not_end_before_min_tokens() -> None:
    engine = make_engine()
    bias = SamplingParams(max_tokens=8, temperature=0, logit_bias={EOS_ID: 100.0})
    late = SamplingParams(max_tokens=8, temperature=0, logit_bias={EOS_ID: 100.0}, min_tokens=5)
    first, second = engine.generate([[1], [1]], [bias, late])
    assert (len(first.token_ids), len(second.token_ids)) == (1, 6)
    assert EOS_ID not in second.token_ids[:-1]
