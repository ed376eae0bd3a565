"""Two runs are compared by their steps, how each ended, how long it took, and the figures it gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plans import plan_of

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.plan.diff_runs import Figure, Outcome, compare_runs, read_outcomes
from trtx.plan.record import RunRecord, create_run
from trtx.plan.steps import Plan


def record(tmp_path: Path, plan: Plan, *events: tuple[str, str], name: str = "a") -> RunRecord:
    run = create_run(tmp_path / name, plan)
    for step, event in events:
        run.add_event(event, step=step, **({"duration_s": 2.5} if event in ("done", "failed") else {}))
    return run


def publish(plan: Plan, step_id: str, summary: dict[str, Any]) -> None:
    store, step = Store(Path(plan.cache_dir)), plan.step(step_id)
    store.prepare()
    with store.stage(step.key) as folder:
        (folder / "output" / "result.json").write_text("{}")
        store.publish(folder, Manifest(step.key, step.id, step.stage, step.factors, (), {}, summary))


def test_a_step_of_which_a_finished_run_says_nothing_was_cached(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    outcomes = read_outcomes(record(tmp_path, plan, ("download/model", "started"), ("download/model", "done")), plan)
    assert outcomes["download/model"] == Outcome("done", 2.5)
    assert outcomes["package/cpu/int8"] == Outcome("cached")


def test_after_a_failure_it_is_not_known_to_be_cached(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    events = (("build/cpu/int8", "failed"), ("package/cpu/int8", "blocked"), ("build/cpu/fp32", "started"))
    outcomes = read_outcomes(record(tmp_path, plan, *events), plan)
    assert outcomes["build/cpu/int8"] == Outcome("failed", 2.5)
    assert outcomes["package/cpu/int8"].state == "blocked"
    assert outcomes["build/cpu/fp32"].state == "interrupted"
    assert outcomes["package/cpu/fp32"].state == "not run"


def test_runs_of_one_plan_that_ended_well_are_equal_though_one_found_all_in_the_cache(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    first = record(tmp_path, plan, *((step.id, "done") for step in plan.steps))
    diff = compare_runs(first, record(tmp_path, plan, name="b"))
    assert diff.equal
    assert diff.outcomes["build/cpu/int8"] == (Outcome("done", 2.5), Outcome("cached"))


def test_runs_of_one_plan_differ_when_one_failed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    failed = record(tmp_path, plan, ("package/cpu/int8", "failed"))
    assert not compare_runs(failed, record(tmp_path, plan, name="b")).equal


def test_results_of_steps_that_were_remade_are_compared_with_their_relative_change(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, {"engine.limits.max_batch_size": 8})
    publish(old, "benchmark/cpu/int8", {"output_tokens_per_s": {"chat@1": 100.0}, "notes": []})
    publish(new, "benchmark/cpu/int8", {"output_tokens_per_s": {"chat@1": 110.0, "chat@8": 1.0}, "notes": []})
    diff = compare_runs(record(tmp_path, old), record(tmp_path, new, name="b"))
    (figure,) = diff.figures
    assert (figure.step, figure.old, figure.new) == ("benchmark/cpu/int8", 100.0, 110.0)
    assert "chat@1" in figure.name
    assert figure.relative == pytest.approx(0.1)
    assert not diff.equal


def test_results_that_are_not_in_the_cache_any_more_are_left_out(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, {"benchmark.repeats": 9})
    publish(old, "benchmark/cpu/int8", {"output_tokens_per_s": {"chat@1": 100.0}})
    assert compare_runs(record(tmp_path, old), record(tmp_path, new, name="b")).figures == ()


def test_a_change_from_zero_has_no_relative_size() -> None:
    assert Figure("a", "b", 0.0, 1.0).relative is None


def test_steps_of_one_run_only_have_no_outcome_in_the_other(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, {"benchmark": None})
    diff = compare_runs(record(tmp_path, old), record(tmp_path, new, name="b"))
    assert diff.outcomes["benchmark/cpu/int8"] == (Outcome("cached"), None)
    assert diff.steps.removed[0] == "benchmark/cpu/fp32"
