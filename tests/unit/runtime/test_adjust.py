from __future__ import annotations

import random
import re

import pytest
import torch
from torch import Tensor

from trtx.runtime.request import Request, SamplingParams
from trtx.runtime.sampler import sample

FLAT_V = torch.tensor([0.1, 0.0, 0.3, 0.2])


def make_request(**params: object) -> Request:
    made = SamplingParams(temperature=0, **params)  # type: ignore[arg-type]
    return Request(0, [0], made, frozenset([2]), 0.0, made.bad_words_ids)


def run(request: Request, steps: int, logits_V: Tensor = FLAT_V) -> list[int]:
    for _ in range(steps):
        request.append(sample(logits_V[None], [request])[0].token_id)
    return request.output_ids


def test_penalties_follow_the_output_from_step_to_step() -> None:
    # 0.25 a time: the order of the logits comes round.
    assert run(make_request(frequency_penalty=0.25, ignore_eos=True, max_tokens=99), 6) == [2, 3, 0, 2, 1, 3]


def test_the_stop_tokens_cannot_come_before_min_tokens() -> None:
    request = make_request(min_tokens=2)
    assert run(request, 3) == [3, 3, 2]
    assert request.finish_reason == "stop"


def test_penalties_count_all_of_a_long_output() -> None:
    draw = random.Random(0)
    request = make_request(presence_penalty=1.0, max_tokens=500)
    request.output_ids += [draw.randrange(400) for _ in range(300)]
    seen = set(request.output_ids)
    (sampled,) = sample(-torch.arange(500.0)[None] * 1e-3, [request])
    assert sampled.token_id == next(token for token in range(500) if token not in seen)


def test_a_processor_sees_prompt_and_output_and_its_answer_counts() -> None:
    seen: list[list[int]] = []

    def only_last(so_far: list[int], logits_V: Tensor) -> Tensor:
        seen.append(so_far)
        logits_V[:-1] = -torch.inf
        return logits_V

    assert run(make_request(logits_processors=only_last), 2) == [3, 3]
    assert seen == [[0], [0, 3]]


def test_processors_run_before_penalties_and_in_their_order() -> None:
    request = make_request(
        logits_processors=[lambda ids, row: row + 1, lambda ids, row: row * torch.tensor([9.0, 1, 1, 1])],
        repetition_penalty=9.0,  # of the prompt's token 0: (0.1 + 1) * 9 / 9 is below (0.3 + 1)
    )
    assert run(request, 1) == [2]


def test_what_a_processor_keeps_is_not_written_to() -> None:
    mine_V = torch.tensor([0.0, 5.0, 0.0, 0.0])
    run(make_request(logits_processors=lambda ids, row: mine_V, logit_bias={1: -9.0}), 1)
    assert mine_V.tolist() == [0.0, 5.0, 0.0, 0.0]


def test_the_logits_of_the_program_are_left_as_they_are() -> None:
    logits_NV = FLAT_V.repeat(2, 1)
    sample(logits_NV, [make_request(logit_bias={0: 5.0}, bad_words_ids=[[1]], repetition_penalty=2.0)] * 2)
    assert torch.equal(logits_NV, FLAT_V.repeat(2, 1))


def fail(ids: list[int], row: Tensor) -> Tensor:
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"logits_processors": fail}, "failed: KeyError: 'mine'"),
        ({"logits_processors": lambda ids, row: row[:2]}, r"shape \[2\], not \[4\]"),
        ({"logits_processors": lambda ids, row: None}, "failed: "),
        ({"logits_processors": lambda ids, row: row * torch.nan}, "no token"),
        ({"logits_processors": lambda ids, row: row - torch.inf}, "no token"),
        ({"bad_words_ids": [[0], [1], [2], [3]]}, "no token"),
        ({"min_tokens": 1, "bad_words_ids": [[0], [1], [3]]}, "no token"),
    ],
)
def test_a_request_whose_adjustments_fail_ends_with_an_error_and_alone(params: dict[str, object], why: str) -> None:
    broken, other = make_request(**params), make_request()
    tokens = [sampled.token_id for sampled in sample(FLAT_V.repeat(2, 1), [broken, other])]
    broken.append(tokens[0])
    assert broken.finish_reason == "error"
    assert broken.failure is not None
    assert re.search(why, broken.failure)
    assert tokens[1] == 2
    assert other.failure is None
