"""The overlapped loop beside the plain one, and what it does beside the program."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import A_ID, EOS_ID, FakePrograms, expected_tokens, make_card, make_engine, make_tokenizer

from trtx.runtime.engine import Engine
from trtx.runtime.request import Output, Request, RequestRefused, SamplingParams
from trtx.runtime.scheduler import SchedulerSettings

GREEDY = SamplingParams(max_tokens=12, temperature=0)

every_setting = st.builds(
    SchedulerSettings,
    policy=st.sampled_from(["guaranteed-no-evict", "max-utilization"]),
    chunked_prefill=st.booleans(),
    prefix_reuse=st.booleans(),
)
sampling = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 20),
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    seed=st.integers(0, 3),
    stop=st.sampled_from([(), ("a",), ("e", "qq"), ("zz",)]),
    stop_token_ids=st.sampled_from([(), (A_ID + 3,)]),
    ignore_eos=st.booleans(),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30), sampling),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.none()),
        st.tuples(st.just("step"), st.integers(1, 3), st.none()),
    ),
    max_size=25,
)


def play(engine: Engine, stream: list[Any]) -> tuple[list[Request], dict[int, list[Output]]]:
    """What every request got; requests are cancelled and added at the same steps whichever loop it is."""
    requests: list[Request] = []
    outputs: dict[int, list[Output]] = {}

    def step() -> None:
        for output in engine.step():
            outputs[output.request.id].append(output)
        engine.check_integrity()

    for kind, number, params in stream:
        if kind == "add":
            prompt = [(number % 3 * 50 + at) % 256 for at in range(number)] + [len(requests)]
            try:
                requests.append(engine.make_request(prompt, params))
            except RequestRefused:
                continue
            outputs[requests[-1].id] = []
            engine.add_request(requests[-1])
        elif kind == "cancel" and requests:
            engine.cancel(requests[number % len(requests)])
            engine.check_integrity()
        elif kind == "step":
            for _ in range(number):
                step()
    while engine.has_work:
        step()
    assert engine.load_now.kv_blocks_used == 0
    return requests, outputs


@settings(max_examples=250, deadline=None)
@given(num_blocks=st.integers(14, 40), max_num_tokens=st.integers(4, 40), chosen=every_setting, stream=events)
def test_both_loops_give_the_same_tokens_texts_logprobs_and_reasons(
    num_blocks: int, max_num_tokens: int, chosen: SchedulerSettings, stream: list[Any]
) -> None:
    limits = {"num_blocks": num_blocks, "max_num_tokens": max_num_tokens, "max_seq_len": 52}
    plain, overlapped = (make_engine(settings=chosen, overlap=overlap, **limits) for overlap in (False, True))
    requests, outputs = play(plain, stream)
    others, found = play(overlapped, stream)
    for one, other in zip(requests, others, strict=True):
        ours, theirs = outputs[one.id], found[other.id]
        # What the text shows is all that was counted, whatever was computed besides.
        assert [t for output in theirs for t in output.token_ids] == other.output_ids
        if "cancelled" in (one.finish_reason, other.finish_reason):
            shorter = min(len(one.output_ids), len(other.output_ids))
            assert one.output_ids[:shorter] == other.output_ids[:shorter]
            continue
        assert other.output_ids == one.output_ids
        assert [o.text for o in theirs] == [o.text for o in ours]
        assert [o.logprobs for o in theirs] == [o.logprobs for o in ours]
        assert other.prompt_scores == one.prompt_scores
        assert [s.token_id for s in one.prompt_scores] == (one.prompt_ids[1:] if one.scores_prompt else [])
        assert (other.finish_reason, other.stop_reason) == (one.finish_reason, one.stop_reason)
    assert overlapped.stats.output_tokens == sum(len(request.output_ids) for request in others)


class Watched(FakePrograms):
    """Calls `during` while a step runs, in the thread that runs it."""

    def __init__(self, during: Callable[[], None], **limits: int) -> None:
        super().__init__(make_card(**limits))
        self.during = during

    def step(self, *inputs: Any) -> Any:
        self.during()
        return super().step(*inputs)


def test_programs_run_in_one_thread_of_their_own_and_the_next_step_is_planned_meanwhile() -> None:
    threads: list[threading.Thread] = []
    num_plans = 0
    planned = threading.Condition()

    def during() -> None:
        threads.append(threading.current_thread())
        # The plan of this step was one more than those before; it does not end before there is the next one.
        with planned:
            assert planned.wait_for(lambda: num_plans > len(threads), timeout=10)

    engine = make_engine(Watched(during), overlap=True)
    schedule = engine._scheduler.schedule

    def schedule_and_tell() -> Any:
        nonlocal num_plans
        batch = schedule()
        with planned:
            num_plans += 1
            planned.notify_all()
        return batch

    engine._scheduler.schedule = schedule_and_tell  # type: ignore[method-assign]
    engine.add_request(engine.make_request([1], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    assert len(threads) == 9
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


def test_a_step_whose_requests_have_all_ended_is_not_run() -> None:
    prompt = next([a, b] for a in range(256) for b in range(256) if expected_tokens([a, b], 6)[-1] == EOS_ID)
    tokens = expected_tokens(prompt, 6)
    programs = FakePrograms(make_card())
    (completion,) = make_engine(programs, overlap=True).generate([prompt], GREEDY)
    assert list(completion.token_ids) == tokens
    assert len(programs.calls) == len(tokens)


def test_a_stop_string_is_found_one_step_late_and_the_surplus_token_is_neither_shown_nor_counted() -> None:
    prompt = next([n] for n in range(256) if EOS_ID not in expected_tokens([n], 12))
    text = make_tokenizer().decode(expected_tokens(prompt, 12))
    programs = FakePrograms(make_card())
    engine = make_engine(programs, overlap=True)
    (completion,) = engine.generate([prompt], SamplingParams(max_tokens=12, temperature=0, stop=(text[4:7],)))
    assert (completion.text, completion.finish_reason) == (text[:4], "stop")
    assert list(completion.token_ids) == expected_tokens(prompt, 12)[:7]
    assert engine.stats.output_tokens == 7
    # It was computed, and its step is still to be taken note of.
    while engine.has_work:
        assert engine.step() == []
    assert len(programs.calls) == 8
    assert engine.stats.output_tokens == 7
    engine.check_integrity()


def test_what_a_program_raises_is_raised_by_the_step_that_waits_for_it() -> None:
    programs = FakePrograms(make_card())
    programs.fail_with = RuntimeError("index out of bounds")
    engine = make_engine(programs, overlap=True)
    engine.add_request(engine.make_request([1], GREEDY))
    with pytest.raises(RuntimeError, match="index out of bounds"):
        engine.step()


def test_the_thread_ends_with_its_engine() -> None:
    gc.collect()
    before = set(threading.enumerate())
    engine = make_engine(overlap=True)
    (thread,) = set(threading.enumerate()) - before
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
