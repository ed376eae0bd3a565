"""Logprobs of prompts are transformers' own, however the prompt is cut, shared, paused or run beside others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_llama
from support.engines import FakePrograms, make_card, make_engine, make_tokenizer
from support.modules import make_eager_engine

from trtx.llm import LLM
from trtx.runtime.engine import Engine
from trtx.runtime.params import RequestRefused, SamplingParams
from trtx.runtime.request import Request
from trtx.runtime.scheduler import SchedulerSettings

LENGTHS = (1, 2, 9, 17, 40)
ASKED = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=2, ignore_eos=True)
NONE = replace(ASKED, max_tokens=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("scored")
    return folder, make_llama(folder / "checkpoint")


@pytest.fixture(scope="module")
def programs(model: tuple[Path, Any]) -> Any:
    return make_eager_engine(model[0] / "made", model[0] / "checkpoint", num_blocks=24)


def prompts() -> list[list[int]]:
    """Prompts of many lengths, the later of which begin like the longest."""
    generator = torch.Generator().manual_seed(5)
    longest: list[int] = torch.randint(0, 64, (max(LENGTHS),), generator=generator).tolist()
    return [longest[:length] for length in LENGTHS] + [longest]


def run(engine: Engine, requests: Sequence[Request]) -> None:
    for request in requests:
        engine.add_request(request)
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    assert engine.load_now.kv_blocks_used == 0


def check(model: Any, request: Request) -> None:
    """The scores of a request against the log-softmax of the model's logits."""
    ids = torch.tensor([list(request.prompt_ids)])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0].double().log_softmax(-1)
    assert len(request.prompt_scores) == len(request.prompt_ids) - 1
    for row, (token_id, scored) in enumerate(zip(request.prompt_ids[1:], request.prompt_scores, strict=True)):
        assert scored.token_id == token_id
        assert scored.logprob == pytest.approx(float(expected[row, token_id]), abs=1e-5)
        assert scored.rank == int((expected[row] > expected[row, token_id]).sum()) + 1
        assert [other for other, _ in scored.top] == expected[row].topk(2).indices.tolist()


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("params", [ASKED, NONE], ids=["with an answer", "without"])
def test_they_are_those_of_transformers(
    model: tuple[Path, Any], programs: Any, params: SamplingParams, overlap: bool
) -> None:
    engine = Engine(programs, make_tokenizer(), overlap=overlap)
    # More tokens than a step takes, beside others that ask for nothing; twice, so that the pool knows all of them.
    for _ in range(2):
        requests = [engine.make_request(ids, params) for ids in prompts()]
        others = [engine.make_request(ids, replace(ASKED, prompt_logprobs=None)) for ids in prompts()]
        run(engine, [each for pair in zip(requests, others, strict=True) for each in pair])
        for request in requests:
            check(model[1], request)
            assert request.finish_reason == "length"
            assert len(request.output_ids) == params.max_tokens
        assert not any(other.prompt_scores for other in others)
    assert engine.stats.cached_tokens > 0
    assert engine.stats.output_tokens == 2 * len(prompts()) * (3 + params.max_tokens)


def test_a_request_that_was_paused_has_every_token_once(model: tuple[Path, Any], programs: Any) -> None:
    engine = Engine(programs, make_tokenizer(), settings=SchedulerSettings(policy="max-utilization"))
    params = replace(ASKED, max_tokens=24)
    requests = [engine.make_request(prompts()[-1], params) for _ in range(4)]
    run(engine, requests)
    assert engine.stats.paused > 0
    for request in requests:
        check(model[1], request)


def test_a_step_takes_only_as_many_as_their_logits_may_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtx.runtime.engine.MAX_SCORED_LOGITS", 258 * 5)
    fake = FakePrograms(make_card())
    engine = Engine(fake, make_tokenizer())
    scored = [engine.make_request(list(range(12)), NONE) for _ in range(2)]
    plain = engine.make_request(list(range(100, 130)), SamplingParams(max_tokens=1))
    run(engine, [*scored, plain])
    # The last token of a prompt is not one of those; and none overtakes another.
    assert fake.calls == [(5,), (5,), (2, 4, 30), (5,), (3,)]
    assert all(len(request.prompt_scores) == 11 for request in scored)


def test_the_first_prompt_token_has_none_and_the_last_gives_the_answer() -> None:
    engine = make_engine()
    (request,) = [engine.make_request([7], NONE)]
    run(engine, [request])
    assert (request.prompt_scores, request.output_ids, request.finish_reason) == ([], [], "length")


def test_a_prompt_as_long_as_the_engine_s_limit_needs_no_place_for_an_answer() -> None:
    engine = make_engine(max_seq_len=32)
    run(engine, [engine.make_request(list(range(32)), NONE)])
    with pytest.raises(RequestRefused, match="33"):
        engine.make_request(list(range(33)), NONE)


def test_an_answer_of_no_tokens_is_refused_without_them() -> None:
    with pytest.raises(RequestRefused, match="max_tokens must be at least 1"):
        SamplingParams(max_tokens=0)
    with pytest.raises(RequestRefused, match="prompt_logprobs must be 0 or more"):
        SamplingParams(prompt_logprobs=-1)


def test_the_python_api_gives_them_with_the_output() -> None:
    with LLM.of(make_engine()) as llm:
        (output,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, replace(NONE, prompt_logprobs=1))
        assert output.prompt_logprobs is not None
        first, *others = output.prompt_logprobs
        assert first is None
        assert [next(iter(found)) for found in others if found] == [6, 7]
        assert output.outputs[0].token_ids == []
        (plain,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=1))
        assert plain.prompt_logprobs is None
