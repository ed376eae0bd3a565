from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
from support.engines import EOS_ID, FakePrograms, expected_tokens, make_card, make_engine, make_tokenizer
from torch import Tensor

from trtx.runtime.engine import Engine
from trtx.runtime.request import Output, Request, RequestRefused, SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)
Make = Callable[..., Engine]


@pytest.fixture(params=[False, True], ids=["plain", "overlapped"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an engine with one of the two loops."""
    return partial(make_engine, overlap=request.param)


def random_prompts(count: int, longest: int, seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(256) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_batch_size": 1},
        {"max_batch_size": 9, "num_blocks": 18},
        {"max_num_tokens": 8},
        {"tokens_per_block": 1},
        {"tokens_per_block": 64},
    ],
)
def test_every_request_gets_the_tokens_it_would_get_alone(make: Make, limits: dict[str, int]) -> None:
    engine = make(**limits)
    prompts = random_prompts(25, longest=40)
    completions = engine.generate(prompts, GREEDY)
    assert [list(c.token_ids) for c in completions] == [expected_tokens(prompt, 12) for prompt in prompts]
    engine.check_integrity()
    assert engine.load_now.kv_blocks_used == 0


def test_requests_that_arrive_while_others_run_change_nothing_for_either(make: Make) -> None:
    engine = make()
    prompts = random_prompts(12, longest=20)
    requests: list[Request] = []
    for prompt in prompts:
        requests.append(engine.make_request(prompt, GREEDY))
        engine.add_request(requests[-1])
        engine.step()
        engine.step()
        engine.check_integrity()
    while engine.has_work:
        engine.step()
    assert [request.output_ids for request in requests] == [expected_tokens(prompt, 12) for prompt in prompts]


def test_cancelled_requests_free_their_blocks_and_the_others_go_on_unharmed(make: Make) -> None:
    engine = make()
    prompts = random_prompts(8, longest=20)
    requests = [engine.make_request(prompt, GREEDY) for prompt in prompts]
    for request in requests:
        engine.add_request(request)
    for request in requests[::2]:
        engine.step()
        engine.cancel(request)
        engine.check_integrity()
    while engine.has_work:
        engine.step()
    assert [r.output_ids for r in requests[1::2]] == [expected_tokens(p, 12) for p in prompts[1::2]]
    assert engine.load_now.kv_blocks_used == 0
    assert engine.stats.finished["cancelled"] == 4
    engine.cancel(requests[1])
    assert engine.stats.finished["cancelled"] == 4


def find_prompt_that_ends(within: int) -> list[int]:
    return next(p for p in ([a, b] for a in range(256) for b in range(256)) if EOS_ID in expected_tokens(p, within))


def test_the_end_token_ends_the_text_counts_as_a_token_and_is_not_shown(make: Make) -> None:
    prompt = find_prompt_that_ends(within=8)
    tokens = expected_tokens(prompt, 12)
    (completion,) = make().generate([prompt], GREEDY)
    assert (completion.finish_reason, completion.token_ids[-1]) == ("stop", EOS_ID)
    assert completion.text == make_tokenizer().decode(tokens[:-1])


def test_ignore_eos_goes_on_to_the_last_token(make: Make) -> None:
    prompt = find_prompt_that_ends(within=8)
    (completion,) = make().generate([prompt], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
    assert (completion.finish_reason, len(completion.token_ids)) == ("length", 20)
    assert list(completion.token_ids) == expected_tokens(prompt, 20, stop=None)


def text_prompt() -> tuple[list[int], str]:
    """A prompt that does not end by itself within 12 tokens, and its continuation."""
    first = next(n for n in range(256) if EOS_ID not in expected_tokens([n], 12))
    return [first], make_tokenizer().decode(expected_tokens([first], 12))


def test_a_stop_token_of_the_request_ends_it_and_is_not_shown(make: Make) -> None:
    prompt, text = text_prompt()
    tokens = expected_tokens(prompt, 12)
    params = SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(tokens[5],))
    (completion,) = make().generate([prompt], params)
    end = tokens.index(tokens[5])
    assert (completion.finish_reason, completion.text) == ("stop", text[:end])
    assert list(completion.token_ids) == tokens[: end + 1]


def test_a_stop_string_ends_the_text_before_it_and_frees_the_request(make: Make) -> None:
    prompt, text = text_prompt()
    engine = make()
    (completion,) = engine.generate([prompt], SamplingParams(max_tokens=12, temperature=0, stop=(text[4:7],)))
    assert (completion.finish_reason, completion.text) == ("stop", text[:4])
    assert len(completion.token_ids) < 12
    engine.check_integrity()
    assert engine.load_now.kv_blocks_used == 0


def test_a_stop_string_that_ends_with_the_last_token_allowed_is_a_stop(make: Make) -> None:
    prompt, text = text_prompt()
    params = SamplingParams(max_tokens=12, temperature=0, stop=(text[-2:],))
    (completion,) = make().generate([prompt], params)
    assert (completion.finish_reason, completion.text) == ("stop", text[: text.index(text[-2:])])


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(make: Make) -> None:
    prompt, text = text_prompt()
    params = SamplingParams(max_tokens=12, temperature=0, stop=(text[-2:] + "\u0000never",))
    (completion,) = make().generate([prompt], params)
    assert (completion.finish_reason, completion.text) == ("length", text)


def test_the_pieces_of_a_stream_are_the_text_and_only_the_last_has_a_reason(make: Make) -> None:
    engine = make()
    request = engine.make_request("hello", GREEDY)
    engine.add_request(request)
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason in ("stop", "length")
    assert "".join(o.text for o in outputs) == engine.tokenizer.decode(request.output_ids)
    assert [o.time_s for o in outputs] == sorted(o.time_s for o in outputs)


def test_sampling_with_a_seed_repeats_itself_in_other_company(make: Make) -> None:
    params = SamplingParams(max_tokens=16, temperature=2.0, seed=11, ignore_eos=True)
    (alone,) = make().generate([[1, 2, 3]], params)
    crowd = [SamplingParams(max_tokens=9, temperature=3.0)] * 5
    crowded = make().generate([*random_prompts(5, 10), [1, 2, 3]], [*crowd, params])
    assert crowded[-1].token_ids == alone.token_ids
    assert alone.token_ids != tuple(expected_tokens([1, 2, 3], 16, stop=None))


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], GREEDY, "prompt"),
        ([1, 258], GREEDY, "prompt"),
        ([-1], GREEDY, "prompt"),
        ([1], SamplingParams(max_tokens=4, stop_token_ids=(999,)), "stop_token_ids"),
        ([1] * 60, GREEDY, "max_tokens"),
        ([1] * 64, GREEDY, "prompt"),
    ],
)
def test_a_request_that_can_never_run_is_refused_before_it_is_queued(
    make: Make, prompt: list[int], params: SamplingParams, param: str
) -> None:
    engine = make()
    with pytest.raises(RequestRefused) as refused:
        engine.generate([[1, 2], prompt], params)
    assert refused.value.param == param
    assert not engine.has_work
    engine.check_integrity()


def test_what_is_counted_adds_up(make: Make) -> None:
    engine = make(max_num_tokens=16)
    prompts = random_prompts(6, longest=30)
    completions = engine.generate(prompts, GREEDY)
    assert engine.stats.prompt_tokens == sum(map(len, prompts))
    assert engine.stats.output_tokens == sum(len(c.token_ids) for c in completions)
    assert engine.stats.finished.total() == 6
    assert engine.stats.prefill_steps + engine.stats.decode_steps == len(engine._programs.calls)  # type: ignore[attr-defined]


def test_block_tables_are_as_wide_as_the_longest_sequence_needs() -> None:
    widths: list[int] = []

    class Watching(FakePrograms):
        def step(self, *inputs: Tensor) -> Tensor:
            widths.append(inputs[3].shape[1])
            return super().step(*inputs)

    engine = Engine(Watching(make_card()), make_tokenizer())
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=10, temperature=0, ignore_eos=True))
    # The prompt, then positions 3 … 11, with four tokens per block.
    assert widths == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def test_the_integrity_check_finds_texts_of_requests_that_are_gone(make: Make) -> None:
    engine = make()
    engine.add_request(engine.make_request([1], GREEDY))
    engine._scheduler.waiting.clear()
    with pytest.raises(AssertionError, match="texts are kept"):
        engine.check_integrity()
