"""The explanation of a step names the entry that comes closest, what really differs, and what the miss costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.plans import plan_of

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.errors import UsageProblem
from trtx.plan.steps import Plan, Step
from trtx.plan.survey import State, StepStatus
from trtx.plan.why import Entries, Explanation, choose_steps, explain


def manifest_of(step: Step, *, started: float = 1000.0, duration_s: float | None = 10.0) -> Manifest:
    provenance: dict[str, Any] = {"recipe": "tiny", "host": "here", "started": started, "duration_s": duration_s}
    return Manifest(step.key, step.id, step.stage, step.factors, (), provenance, {})


def why(plan: Plan, entries: Iterable[Manifest], step: str, cached: Iterable[str] = ()) -> Explanation:
    """Explain a step of a plan of which `cached` steps are in the cache."""
    statuses = [
        StepStatus(one, State.CACHED if one.id in set(cached) else State.TO_RUN, "reason") for one in plan.steps
    ]
    return explain(plan, statuses, Entries(entries), plan.step(step))


def test_a_changed_setting_is_the_one_factor_that_differs(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, {"engine.limits.max_batch_size": 8})
    nearest = why(new, map(manifest_of, old.steps), "build/cpu/int8").nearest
    assert nearest is not None
    assert nearest.manifest.step == "build/cpu/int8"
    assert [str(change) for change in nearest.changes] == ["params.limits.max_batch_size: 4 → 8"]
    assert [(cause.step, len(cause.changes)) for cause in nearest.causes] == [("build/cpu/int8", 1)]


def test_an_input_that_differs_is_followed_to_the_step_that_really_changed(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, identity="seed=1")
    nearest = why(new, map(manifest_of, old.steps), "package/cpu/int8").nearest
    assert nearest is not None
    (cause,) = nearest.causes
    assert cause.trail[0] == "package/cpu/int8"
    assert cause.step == "download/model"
    assert [change.name for change in cause.changes] == ["params.identity"]


def test_own_factors_come_before_those_of_inputs(tmp_path: Path) -> None:
    old = plan_of(tmp_path)
    new = plan_of(tmp_path, {"benchmark.repeats": 9, "engine.limits.max_batch_size": 8})
    nearest = why(new, map(manifest_of, old.steps), "benchmark/cpu/int8").nearest
    assert nearest is not None
    assert [cause.step for cause in nearest.causes] == ["benchmark/cpu/int8", "build/cpu/int8"]


def test_a_trail_ends_where_the_cache_has_forgotten_the_old_input(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, identity="seed=1")
    kept = [manifest_of(step) for step in old.steps if step.stage == "convert"]
    nearest = why(new, kept, "convert/cpu/int8").nearest
    assert nearest is not None
    assert [(cause.trail, cause.changes) for cause in nearest.causes] == [(("convert/cpu/int8", "calibrate/int8"), ())]


def test_the_nearest_entry_has_the_fewest_different_factors_then_the_same_name_then_is_the_newest(
    tmp_path: Path,
) -> None:
    new = plan_of(tmp_path)
    step = new.step("convert/cpu/int8")
    one_off = [
        replace(manifest_of(step, started=started), key=key * 64, step=name, factors=step.factors | {"code": 99})
        for started, key, name in ((3.0, "a", "convert/other"), (1.0, "b", step.id), (2.0, "c", step.id))
    ]
    two_off = replace(manifest_of(step), key="d" * 64, factors=step.factors | {"code": 99, "machine": {"x": "y"}})
    nearest = why(new, [two_off, *one_off], step.id).nearest
    assert nearest is not None
    assert nearest.manifest.key == "c" * 64


def test_an_entry_of_another_stage_is_never_the_nearest(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    others = [manifest_of(step) for step in plan.steps if step.stage != "build"]
    assert why(plan, others, "build/cpu/int8").nearest is None


def test_the_cost_is_the_step_and_all_that_is_redone_because_of_it(tmp_path: Path) -> None:
    old, new = plan_of(tmp_path), plan_of(tmp_path, {"engine.limits.max_batch_size": 8})
    cached = [step.id for step in new.steps if step.stage in ("download", "dataset", "calibrate", "convert")]
    explanation = why(new, map(manifest_of, old.steps), "build/fast/int8", cached)
    assert [estimate.step for estimate in explanation.cost] == [
        "build/fast/int8",
        "benchmark/fast/int8",
        "package/fast/int8",
    ]
    assert explanation.known_cost_s == 30.0
    assert explanation.unknown_cost == ()


def test_what_nothing_is_recorded_about_is_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    manifests = [manifest_of(step) for step in plan_of(tmp_path, identity="x").steps if step.stage == "benchmark"]
    silent = [manifest_of(step, duration_s=None) for step in plan.steps if step.stage == "package"]
    explanation = why(plan, manifests + silent, "build/cpu/int8")
    assert explanation.unknown_cost == ("build/cpu/int8", "package/cpu/int8")
    assert explanation.known_cost_s == 10.0


def test_a_hit_costs_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    names = [step.id for step in plan.steps]
    assert why(plan, map(manifest_of, plan.steps), "build/cpu/int8", names).cost == ()


def test_an_entry_that_a_remote_has_costs_nothing_and_what_follows_it_is_not_blamed_on_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    statuses = [StepStatus(step, State.REMOTE, "at s3://cache") for step in plan.steps]
    assert explain(plan, statuses, Entries(()), plan.step("build/cpu/int8")).cost == ()


def test_an_entry_of_the_same_key_gives_the_duration_of_a_corrupt_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    own = manifest_of(plan.step("package/cpu/int8"), duration_s=5.0)
    explanation = why(plan, [own], "package/cpu/int8")
    assert explanation.known_cost_s == 5.0
    assert explanation.nearest is None


def test_steps_are_chosen_by_id_or_glob(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert [step.id for step in choose_steps(plan, "build/cpu/int8")] == ["build/cpu/int8"]
    assert [step.id for step in choose_steps(plan, "build/*/int8")] == ["build/cpu/int8", "build/fast/int8"]


def test_an_unknown_step_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="no step 'biuld/cpu/int8'") as caught:
        choose_steps(plan_of(tmp_path), "biuld/cpu/int8")
    assert caught.value.fix == "did you mean 'build/cpu/int8'?"


def test_an_empty_cache_has_nothing_to_compare_with(tmp_path: Path) -> None:
    explanation = why(plan_of(tmp_path), Store(tmp_path / "none").manifests(), "build/cpu/int8")
    assert explanation.nearest is None
    assert len(explanation.unknown_cost) == 3
