"""A plan runs in order, reuses what is cached, heals what is corrupt, and stops where something fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.plans import plan_of
from support.steps import Behaviour, InlineRunner, Watcher, corrupt, install_stage, states, write_output

from trtx.cache.store import Store
from trtx.cache.usage import keys_in_use
from trtx.errors import EnvironmentProblem, StepFailed, VerificationFailed
from trtx.files import read_json
from trtx.plan.execute import Execution
from trtx.plan.record import create_run, find_run, latest_plan, latest_run
from trtx.plan.steps import Plan
from trtx.plan.survey import State, overlay, survey
from trtx.runners.base import Task
from trtx.stages.base import StepContext
from trtx.stages.job import JOB_NAME, dump_file

Apply = Callable[..., Execution]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    made.prepare()
    return made


@pytest.fixture
def apply(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Apply:
    def run(
        plan: Plan,
        behaviours: dict[str, Behaviour] | None = None,
        runner: InlineRunner | None = None,
        **options: Any,
    ) -> Execution:
        install_stage(monkeypatch, behaviours)
        record = create_run(tmp_path, plan)
        execution = Execution(plan, store, runner or InlineRunner(), record, {}, Watcher(), **options)
        execution.run(survey(plan, store))
        return execution

    return run


def fail_with(error: Exception) -> Behaviour:
    def behave(context: StepContext) -> None:
        write_output(context)
        raise error

    return behave


def test_every_step_runs_once_and_inputs_come_first(tmp_path: Path, apply: Apply) -> None:
    plan, runner = plan_of(tmp_path), InlineRunner()
    execution = apply(plan, runner=runner)
    assert sorted(runner.order) == sorted(step.id for step in plan.steps)
    for step in plan.steps:
        for entry in step.inputs.values():
            assert runner.order.index(entry.step) < runner.order.index(step.id)
    assert set(states(list(execution.statuses.values())).values()) == {State.DONE}


def test_all_entries_of_a_run_are_in_use_until_it_ends_whatever_its_end(
    tmp_path: Path, apply: Apply, store: Store
) -> None:
    plan = plan_of(tmp_path)
    seen: list[set[str]] = []

    class Stopped(InlineRunner):
        def start(self, task: Task) -> None:
            seen.append(set(keys_in_use(store)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(plan, runner=Stopped())
    apply(plan, {plan.steps[0].id: fail_with(StepFailed("no"))})
    assert seen == [{step.key for step in plan.steps}]
    assert keys_in_use(store) == {}


def test_a_second_apply_runs_nothing(tmp_path: Path, apply: Apply, store: Store) -> None:
    plan, runner = plan_of(tmp_path), InlineRunner()
    apply(plan)
    apply(plan, runner=runner)
    assert runner.order == []
    assert {status.state for status in survey(plan, store)} == {State.CACHED}


def test_what_runs_is_byte_for_byte_what_was_planned(tmp_path: Path, apply: Apply) -> None:
    plan = plan_of(tmp_path)
    execution = apply(plan)
    for step in plan.steps:
        written = (execution.record.step_folder(step.id) / JOB_NAME).read_text()
        assert written == dump_file(step.job(plan))
    assert execution.record.load_plan() == plan


def test_a_changed_limit_reruns_builds_and_explains_itself(tmp_path: Path, apply: Apply, store: Store) -> None:
    before = plan_of(tmp_path)
    apply(before)
    after = plan_of(tmp_path, {"engine.limits.max_batch_size": 8})
    statuses = {status.step.id: status for status in survey(after, store, before)}
    assert statuses["calibrate/int8"].state is State.CACHED
    assert statuses["build/cpu/int8"].state is State.TO_RUN
    assert "params.limits.max_batch_size: 4 → 8" in statuses["build/cpu/int8"].reason
    runner = InlineRunner()
    apply(after, runner=runner)
    assert {name.split("/")[0] for name in runner.order} == {"build", "benchmark", "package"}


def test_benchmarks_have_the_machine_to_themselves(tmp_path: Path, apply: Apply) -> None:
    runner = InlineRunner(max_parallel=4)
    apply(plan_of(tmp_path), runner=runner)
    together = [group for group in runner.side_by_side if len(group) > 1]
    assert together
    assert not any(name.startswith("benchmark/") for group in together for name in group)


def test_a_flipped_byte_is_found_quarantined_and_only_that_step_redone(
    tmp_path: Path, apply: Apply, store: Store
) -> None:
    plan = plan_of(tmp_path)
    apply(plan)
    key = plan.step("calibrate/int8").key
    corrupt(store.output(key) / "output.txt")
    statuses = {status.step.id: status for status in survey(plan, store)}
    assert statuses["calibrate/int8"].state is State.TO_RUN
    assert "output.txt does not have its recorded SHA-256" in statuses["calibrate/int8"].reason
    runner = InlineRunner()
    execution = apply(plan, runner=runner)
    assert runner.order == ["calibrate/int8"]
    assert store.find(key).manifest is not None
    assert "quarantined" in {event["event"] for event in execution.record.events()}


def test_an_absent_intermediate_is_not_remade_when_nothing_needs_it(tmp_path: Path, apply: Apply, store: Store) -> None:
    plan = plan_of(tmp_path)
    apply(plan)
    store.remove(plan.step("calibrate/int8").key)
    assert states(survey(plan, store))["calibrate/int8"] is State.NOT_NEEDED
    runner = InlineRunner()
    apply(plan, runner=runner)
    assert runner.order == []


def test_a_failed_step_is_reported_and_blocks_what_follows(tmp_path: Path, apply: Apply) -> None:
    error = VerificationFailed("logits differ", why="0.3 > 0.02", fix="report it")
    execution = apply(plan_of(tmp_path), {"build": fail_with(error)})
    failed = [name for name, state in states(list(execution.statuses.values())).items() if state is State.FAILED]
    assert failed
    assert all(name.startswith("build/") for name in failed)
    caught = execution.errors[failed[0]]
    assert (type(caught), caught.what, caught.why, caught.fix) == (
        VerificationFailed,
        "logits differ",
        "0.3 > 0.02",
        "report it",
    )
    cell = failed[0].removeprefix("build/")
    assert execution.statuses[f"package/{cell}"].state is State.BLOCKED


def test_a_failed_step_publishes_nothing_and_the_next_apply_repeats_it(
    tmp_path: Path, apply: Apply, store: Store
) -> None:
    plan = plan_of(tmp_path)
    apply(plan, {"build": fail_with(StepFailed("no"))})
    assert store.find(plan.step("build/cpu/fp32").key).manifest is None
    assert list((store.root / "tmp").iterdir()) == []
    runner = InlineRunner()
    apply(plan, runner=runner)
    assert "build/cpu/fp32" in runner.order
    assert "calibrate/fp32" not in runner.order


def test_after_a_failure_nothing_new_starts_unless_told_to_keep_going(tmp_path: Path, apply: Apply) -> None:
    def fail_int8(context: StepContext) -> None:
        raise StepFailed("int8 is broken")

    calls: list[StepContext] = []

    def fail_second(context: StepContext) -> None:
        calls.append(context)
        if len(calls) == 1:
            fail_int8(context)
        write_output(context)

    plan = plan_of(tmp_path)
    stopped = apply(plan, {"calibrate": fail_second}, runner=InlineRunner(max_parallel=1))
    assert stopped.statuses["calibrate/int8"].state is State.WAITING
    calls.clear()
    going = apply(plan, {"calibrate": fail_second}, runner=InlineRunner(max_parallel=1), keep_going=True)
    assert going.statuses["package/cpu/int8"].state is State.DONE
    assert going.statuses["package/cpu/fp32"].state is State.BLOCKED


def test_a_worker_killed_by_a_signal_is_a_failure_with_that_cause(tmp_path: Path, apply: Apply) -> None:
    execution = apply(plan_of(tmp_path), runner=InlineRunner(killed={"calibrate/fp32"}))
    error = execution.errors["calibrate/fp32"]
    assert "killed by SIGKILL" in error.what
    assert "memory" in error.why


def test_a_missing_package_in_a_step_is_an_environment_problem(tmp_path: Path, apply: Apply) -> None:
    execution = apply(plan_of(tmp_path), {"calibrate": fail_with(ModuleNotFoundError("no", name="modelopt.torch"))})
    error = next(iter(execution.errors.values()))
    assert isinstance(error, EnvironmentProblem)
    assert "modelopt" in error.what


def test_an_unforeseen_error_names_its_type_and_the_log(tmp_path: Path, apply: Apply) -> None:
    execution = apply(plan_of(tmp_path), {"download": fail_with(ZeroDivisionError("division by zero"))})
    error = execution.errors["download/model"]
    assert error.what == "ZeroDivisionError: division by zero"
    assert "log" in error.why


def test_an_interruption_stops_and_leaves_a_state_the_next_apply_continues(
    tmp_path: Path, apply: Apply, store: Store
) -> None:
    plan = plan_of(tmp_path)

    class Interrupting(InlineRunner):
        def wait(self, timeout_s: float) -> list[Any]:
            if "build/cpu/fp32" in self.order:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    with pytest.raises(KeyboardInterrupt):
        apply(plan, runner=Interrupting())
    record = find_run(tmp_path)
    assert "interrupted" in {event["event"] for event in record.events()}
    runner = InlineRunner()
    apply(plan, runner=runner)
    assert "download/model" not in runner.order
    assert {status.state for status in survey(plan, store)} == {State.CACHED}


def test_status_shows_what_a_run_did(tmp_path: Path, apply: Apply, store: Store) -> None:
    plan = plan_of(tmp_path)
    execution = apply(plan, {"build": fail_with(StepFailed("no compiler"))})
    shown = {status.step.id: status for status in overlay(survey(plan, store), execution.record)}
    assert shown["download/model"].state is State.DONE
    assert shown["build/cpu/fp32"].state is State.FAILED
    assert shown["build/cpu/fp32"].reason == "no compiler"
    assert shown["package/cpu/fp32"].state is State.BLOCKED


def test_a_run_whose_driver_died_shows_its_steps_as_interrupted(tmp_path: Path, store: Store) -> None:
    plan = plan_of(tmp_path)
    record = create_run(tmp_path, plan)
    record.add_event("started", step="download/model", key=plan.steps[0].key, attempt=1)
    assert states(overlay(survey(plan, store), record))["download/model"] is State.RUNNING
    note = read_json(record.folder / "driver.json")
    (record.folder / "driver.json").write_text(str(note | {"start": "0"}).replace("'", '"'))
    assert states(overlay(survey(plan, store), record))["download/model"] is State.INTERRUPTED


def test_runs_are_found_by_id_and_the_latest_is_the_default(tmp_path: Path) -> None:
    assert latest_run(tmp_path) is None
    plan = plan_of(tmp_path)
    record = create_run(tmp_path, plan)
    assert find_run(tmp_path).id == record.id
    assert find_run(tmp_path, record.id).load_plan() == plan


def test_a_plan_of_another_version_of_trtx_is_not_compared_with(tmp_path: Path) -> None:
    assert latest_plan(tmp_path) is None
    record = create_run(tmp_path, plan_of(tmp_path))
    assert latest_plan(tmp_path) == plan_of(tmp_path)
    for text in ('{"schema": "trtx.plan/v0"}', "not json", '{"schema": "trtx.plan/v1"}'):
        (record.folder / "plan.json").write_text(text)
        assert latest_plan(tmp_path) is None
