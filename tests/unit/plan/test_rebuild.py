"""Which builds can be made again and compared, with what, and what is said of those that cannot."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.plans import edited, make_facts, pin, plan_of
from support.steps import InlineRunner, Watcher, corrupt, install_stage, write_output

from trtx.backends.inductor.replay import Replay, read_replay
from trtx.cache.manifest import Manifest
from trtx.cache.removal import remove_tree
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem, TrtxError, VerificationFailed
from trtx.plan.execute import Execution
from trtx.plan.keys import make_key
from trtx.plan.lock import Lock, LockedBuild
from trtx.plan.make import Options, make_plan
from trtx.plan.rebuild import LOG_NAME, find_obstacle, list_builds, read_choices, run_rebuild
from trtx.plan.record import create_run
from trtx.plan.resolve import resolve_sources
from trtx.plan.steps import Plan
from trtx.plan.survey import survey
from trtx.plan.why import Entries
from trtx.recipe.cells import make_cells
from trtx.recipe.schema import Recipe
from trtx.stages.base import StepContext

RECORDS = Replay(("bf16 16 4096 1024 00ff",), {"step": {"kz/ckz": {"XBLOCK": 64}}})
CHOICES: dict[str, Any] = {"settings": {"max_autotune": False}, **RECORDS.to_groups()}
BUILD = "build/cpu/fp32"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    made.prepare()
    return made


Apply = Callable[..., list[StepContext]]


@pytest.fixture
def apply(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Runs a plan whose stages write one file each; returns the contexts of its builds."""

    def run(plan: Plan) -> list[StepContext]:
        seen: list[StepContext] = []

        def behave(context: StepContext) -> None:
            seen.append(context)
            write_output(context)

        install_stage(monkeypatch, {"build": behave})
        Execution(plan, store, InlineRunner(), create_run(tmp_path, plan), {}, Watcher()).run(survey(plan, store))
        return seen

    return run


def publish(plan: Plan, store: Store) -> None:
    """An entry for every step, as a machine with the plan's tools would have left it."""
    for step in plan.steps:
        with store.stage(step.key) as folder:
            (folder / "output" / "file").write_text(step.id)
            store.publish(folder, Manifest(step.key, step.id, step.stage, step.factors, (), {}, {}))


def obstacle(plan: Plan, store: Store, step: str = BUILD, lock: Lock | None = None) -> TrtxError | None:
    statuses = survey(plan, store)
    status = next(status for status in list_builds(statuses) if status.step.id == step)
    return find_obstacle(plan, status, statuses, Entries(store.manifests("build")), lock)


def test_what_a_lock_says_was_measured_reaches_the_build_of_that_key_and_moves_no_key(
    tmp_path: Path, apply: Apply
) -> None:
    recipe = Recipe.model_validate(edited({}))
    before = plan_of(tmp_path)
    builds = {"b": LockedBuild(arch="x86-64-v3", key=before.step(BUILD).key, choices=CHOICES)}
    pins = resolve_sources([], {}, Lock(builds=builds)).choices
    sources = replace(pin(recipe), choices=pins)
    plan = make_plan(make_cells(recipe), Path("recipe.yaml"), sources, make_facts(tmp_path), Options())
    assert [step.key for step in plan.steps] == [step.key for step in before.steps]
    assert plan == before, "a plan is the same when a lock has learned what its builds chose"
    contexts = apply(plan)
    told = [read_replay(context.choices) for context in contexts]
    assert len(told) == len([step for step in plan.steps if step.stage == "build"]) > 1
    assert [replay for replay in told if replay != Replay()] == [RECORDS]


def test_a_lock_of_builds_that_measured_nothing_changes_no_step() -> None:
    builds = {"b": LockedBuild(arch="x86-64-v3", key="a" * 64, choices={"settings": {"max_autotune": False}})}
    assert resolve_sources([], {}, Lock(builds=builds)).choices == {}


def test_an_entry_that_is_whole_with_its_inputs_can_be_compared(tmp_path: Path, store: Store, apply: Apply) -> None:
    plan = plan_of(tmp_path)
    apply(plan)
    assert [obstacle(plan, store, status.step.id) for status in list_builds(survey(plan, store))] == [None] * 3


def test_a_damaged_entry_fails_the_verification(tmp_path: Path, store: Store, apply: Apply) -> None:
    plan = plan_of(tmp_path)
    apply(plan)
    corrupt(store.output(plan.step(BUILD).key) / "output.txt")
    found = obstacle(plan, store)
    assert isinstance(found, VerificationFailed)
    assert "damaged" in found.what


def test_an_input_that_is_gone_is_named_with_the_command_that_makes_it(
    tmp_path: Path, store: Store, apply: Apply
) -> None:
    plan = plan_of(tmp_path)
    apply(plan)
    remove_tree(store.entry(plan.step("convert/cpu/fp32").key))
    found = obstacle(plan, store)
    assert isinstance(found, EnvironmentProblem)
    assert "its input convert/cpu/fp32 is not in the cache" in found.what
    assert found.fix == "`trtx apply recipe.yaml --until convert` makes it"


def test_an_entry_of_other_tools_is_named_with_what_differs(tmp_path: Path, store: Store) -> None:
    old = plan_of(tmp_path, versions={"torch": "0.1"})
    publish(old, store)
    found = obstacle(plan_of(tmp_path), store)
    assert isinstance(found, EnvironmentProblem)
    assert f"its entry {old.step(BUILD).key[:12]} was made with other tools" in found.what
    assert found.why.startswith("toolchain.torch: 0.1 → ")


def test_the_entry_that_a_lock_names_comes_before_one_that_is_more_alike(tmp_path: Path, store: Store) -> None:
    publish(plan_of(tmp_path, versions={"torch": "0.2"}), store)
    plan = plan_of(tmp_path)
    factors = plan.step(BUILD).factors | {"code": 1, "toolchain": {"torch": "0.1", "c++": "g++ 1"}}
    locked = replace(plan.step(BUILD), key=make_key(factors), factors=factors)
    publish(replace(plan, steps=(locked,)), store)
    assert locked.key[:12] not in str(obstacle(plan, store))
    found = obstacle(plan, store, lock=Lock(entries={BUILD: locked.key}))
    assert found is not None and locked.key[:12] in found.what


def test_an_engine_of_other_settings_is_no_entry_of_this_one(tmp_path: Path, store: Store, apply: Apply) -> None:
    apply(plan_of(tmp_path))
    found = obstacle(plan_of(tmp_path, {"engine.limits.max_batch_size": 3}), store)
    assert isinstance(found, EnvironmentProblem)
    assert found.what == f"{BUILD} has no entry to compare with"


def manifest_of(plan: Plan, **summary: Any) -> Manifest:
    step = plan.step(BUILD)
    return Manifest(step.key, step.id, step.stage, step.factors, (), {}, summary)


def test_a_rebuild_repeats_what_its_entry_measured_and_nothing_else(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert read_choices(manifest_of(plan, choices=CHOICES)) == RECORDS.to_groups()
    assert read_choices(manifest_of(plan)) == {}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("kill -9 $$", f"it was killed by signal {signal.SIGKILL.value}; most often memory ran out"),
        ("echo the last word; exit 3", "it left no report: the last word"),
        ("echo '{' > rebuild.json", "it left no report"),
    ],
)
def test_a_rebuild_that_ends_without_a_report_is_told_as_a_failure(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    plan = plan_of(tmp_path)
    report = run_rebuild(plan, plan.step(BUILD), manifest_of(plan), tmp_path / "scratch", {"PATH": "/usr/bin:/bin"})
    assert report.comparison is None and report.failure is not None
    assert (report.failure.kind, report.failure.why) == ("StepFailed", why)


def test_an_entry_that_went_meanwhile_is_a_failed_verification(tmp_path: Path, store: Store) -> None:
    plan = plan_of(tmp_path)
    report = run_rebuild(plan, plan.step(BUILD), manifest_of(plan), tmp_path / "scratch", os.environ)
    assert report.failure is not None and report.failure.kind == "VerificationFailed"
    assert "there is no entry" in report.failure.why
    assert "cannot be compared with its entry" in (tmp_path / "scratch" / BUILD / LOG_NAME).read_text()


def test_a_machine_without_what_an_engine_was_planned_with_says_so_and_leaves_the_cache(
    tmp_path: Path, store: Store
) -> None:
    plan = plan_of(tmp_path, versions={"torch": "0.1"})
    publish(plan, store)
    before = sorted(store.root.rglob("entries/**/*"))
    report = run_rebuild(plan, plan.step(BUILD), manifest_of(plan), tmp_path / "scratch", os.environ)
    assert report.failure is not None and report.failure.kind == "EnvironmentProblem"
    assert "was planned with other versions: torch 0.1" in report.failure.what
    assert sorted(store.root.rglob("entries/**/*")) == before
