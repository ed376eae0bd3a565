from __future__ import annotations

from dataclasses import fields

import pytest
from support.engines import make_engine

from trtx.runtime.request import SamplingParams
from trtx.runtime.scheduler import SchedulerSettings
from trtx.runtime.stats import MAX_STEPS, EngineStats, StepStats

PARTS = ("schedule_s", "inputs_s", "sample_s", "commit_s", "text_s")


def endless(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_step_says_what_it_computed_and_how_full_the_engine_was(overlap: bool) -> None:
    engine = make_engine(overlap=overlap, max_batch_size=2, max_num_tokens=8)
    engine.generate([[1] * 10, [2] * 3, [3]], endless(3))
    steps = list(engine.stats.steps)
    assert [step.prompt_tokens for step in steps][:2] == [8, 5]
    assert sum(step.prompt_tokens for step in steps) == engine.stats.prompt_tokens == 14
    assert sum(step.output_tokens for step in steps) == engine.stats.output_tokens == 9
    assert (steps[0].running, steps[0].waiting, steps[0].batch_size, steps[0].kv_blocks_used) == (1, 2, 1, 2)
    assert (steps[1].running, steps[1].waiting, steps[1].batch_size, steps[1].kv_blocks_used) == (2, 1, 2, 4)
    assert engine.stats.prefill_steps == sum(step.prompt_tokens > 0 for step in steps)
    assert engine.stats.prefill_steps + engine.stats.decode_steps == len(steps)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_time_of_a_step_covers_its_program_and_has_parts(overlap: bool) -> None:
    engine = make_engine(overlap=overlap)
    for _ in range(2):
        engine.generate([[1, 2, 3]], endless(6))
    for step in engine.stats.steps:
        assert 0 < step.program_s <= step.step_s
        assert all(getattr(step, part) > 0 for part in PARTS)
    # Steps follow one another without a gap while there is work; the pause between two calls is nobody's time.
    elapsed = engine.stats.steps[-1].end_s - engine.stats.steps[0].end_s
    assert 0 < engine.stats.program_s <= engine.stats.step_s < elapsed + engine.stats.steps[0].step_s
    assert 0 <= engine.stats.overhead < 1
    assert EngineStats().overhead == 0


def test_found_tokens_and_paused_requests_are_counted() -> None:
    engine = make_engine()
    for _ in range(2):
        engine.generate([[7] * 17], endless(2))
    assert (engine.stats.cached_tokens, engine.stats.prompt_tokens) == (16, 18)
    small = make_engine(num_blocks=14, settings=SchedulerSettings("max-utilization"))
    small.generate([[1] * 8, [2] * 8, [3] * 8], endless(30))
    assert small.stats.paused > 0
    assert small.stats.paused == sum(step.paused for step in small.stats.steps)


def test_only_the_last_steps_are_remembered_and_the_totals_are_of_all() -> None:
    stats = EngineStats()
    for number in range(MAX_STEPS + 5):
        stats.add(StepStats(output_tokens=1, batch_size=number))
    assert len(stats.steps) == MAX_STEPS
    assert stats.steps[0].batch_size == 5
    assert stats.output_tokens == stats.decode_steps == MAX_STEPS + 5


def test_every_total_of_steps_is_a_sum_of_theirs() -> None:
    stats = EngineStats()
    ones = StepStats(**{item.name: 1 for item in fields(StepStats)})
    stats.add(ones)
    stats.add(ones)
    names = {item.name for item in fields(StepStats)} & {item.name for item in fields(EngineStats)}
    assert names == {"prompt_tokens", "cached_tokens", "output_tokens", "paused", "step_s", "program_s"}
    assert all(getattr(stats, name) == 2 for name in names)
