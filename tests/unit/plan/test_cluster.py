"""Groups of jobs are a function of the plan, and so are their scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plans import plan_of

from trtx.errors import EnvironmentProblem, Interrupted, StepFailed, TimedOut, TrtxError
from trtx.plan import cluster_open
from trtx.plan.cluster import make_groups, runs_on_cluster
from trtx.plan.cluster_errors import make_step_error
from trtx.plan.cluster_open import dialect_file, find_options, open_cluster, recall_dialect
from trtx.plan.cluster_scripts import make_scripts
from trtx.plan.steps import Plan, load_plan
from trtx.plan.survey import State, StepStatus
from trtx.runners.slurm.commands import Answer
from trtx.runners.slurm.outcome import Outcome, TaskState
from trtx.runners.slurm.states import Cause
from trtx.stages.job import Failure, Result

RUNNER = {"type": "slurm", "time": "10min", "gpu_dialect": "gres"}


def cluster_plan(tmp_path: Path, **runner: Any) -> Plan:
    changes = {
        "runners": {"cluster": {**RUNNER, **runner}},
        "targets": {
            name: {
                "gpu": "cpu",
                "runner": "cluster",
                "job": {"gpus": "h100:1"},
                "engine": {"limits": {"max_batch_size": number + 2}},
            }
            for number, name in enumerate(("a", "b"))
        },
    }
    return plan_of(tmp_path, changes)


def all_steps(plan: Plan) -> set[str]:
    return {step.id for step in plan.steps if runs_on_cluster(plan, step)}


def statuses_of(plan: Plan) -> list[StepStatus]:
    return [StepStatus(step, State.TO_RUN, "") for step in plan.steps]


def test_fetching_steps_stay_here_and_all_others_are_jobs(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path)
    here = {step.stage for step in plan.steps if not runs_on_cluster(plan, step)}
    assert here == {"download", "dataset"}
    assert not any(runs_on_cluster(local, step) for local in [plan_of(tmp_path)] for step in local.steps)


def test_one_group_a_stage_in_order_and_chains_match_by_index(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path)
    groups = make_groups(plan, "cluster", all_steps(plan), tmp_path)
    assert [group.name for group in groups] == ["calibrate", "convert", "build", "benchmark", "package"]
    index = {task.step: task.index for group in groups for task in group.tasks}
    for cell in plan.cells:
        assert len({index[f"{stage}/{cell}"] for stage in ("build", "benchmark", "package")}) == 1
    assert all(group.resources.time_s == 600 for group in groups)


def test_only_inputs_that_are_made_in_the_same_run_are_waited_for(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path)
    build = next(step.id for step in plan.steps if step.stage == "build")
    [group] = make_groups(plan, "cluster", {build}, tmp_path)
    assert group.tasks[0].needs == ()


def test_jobs_get_no_variable_that_could_hold_a_secret_and_none_of_this_machines_devices(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path)
    for group in make_groups(plan, "cluster", all_steps(plan), tmp_path):
        for task in group.tasks:
            assert "PATH" in task.inherit
            assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "CUDA_VISIBLE_DEVICES", "TMPDIR"} & set(task.inherit)


def test_inside_a_container_nothing_of_this_machines_installation_is_inherited(tmp_path: Path) -> None:
    container = {"runtime": "pyxis", "image": "nvcr.io/a/b@sha256:" + "0" * 64}
    plan = cluster_plan(tmp_path, container=container, python="python3")
    inherited = {
        name
        for group in make_groups(plan, "cluster", all_steps(plan), tmp_path)
        for task in group.tasks
        for name in task.inherit
    }
    assert inherited <= {"LANG", "LC_ALL", "TZ"}


def test_scripts_are_a_function_of_the_plan(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path, throttle=3, partition="gpu")
    scripts = make_scripts(plan, statuses_of(plan), {"HF_TOKEN": "hf_secret"})
    again = make_scripts(load_plan(plan.to_json()), statuses_of(plan), {})
    assert scripts == again
    build = next(script for script in scripts if script.group == "build")
    assert "#SBATCH --array=0-3%3\n" in build.text
    assert "#SBATCH --gres=gpu:h100:1\n" in build.text
    assert "#SBATCH --partition=gpu\n" in build.text
    assert set(build.steps.values()) == {step.id for step in plan.steps if step.stage == "build"}
    assert not any(str(tmp_path) in line for line in build.text.splitlines() if line.startswith("#SBATCH"))


def test_scripts_of_a_group_that_is_too_large_for_an_array_are_those_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_open, "_find_max_array", lambda *_: 3)
    plan = cluster_plan(tmp_path, throttle=2)
    builds = [script for script in make_scripts(plan, statuses_of(plan), {}) if script.group == "build"]
    assert [next(line for line in script.text.splitlines() if "--array" in line) for script in builds] == [
        "#SBATCH --array=0-2%2",
        "#SBATCH --array=0%2",
    ]
    assert [list(script.steps) for script in builds] == [[0, 1, 2], [0]]


def test_how_a_cluster_is_asked_for_gpus_and_how_large_arrays_are_is_learned_once(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path, gpu_dialect="auto")
    calls: list[str] = []

    class Shell:
        def call(self, argv: Any, *, timeout_s: float, exported: Any = None) -> Answer:
            calls.append(argv[0])
            if argv[0] == "sinfo":
                return Answer(0, "gpu:h100:4|gpu*\n")
            if argv[0] == "scontrol":
                return Answer(0, "MaxArraySize = 3\n")
            return (
                Answer(0) if any(word.startswith("--gpus-per-node") for word in argv) else Answer(1, err="sbatch: no")
            )

    cluster = open_cluster(plan, "cluster", tmp_path / "run", {})
    cluster.shell = Shell()
    assert find_options(plan, cluster, {}).gpu_dialect == "gpus-per-node"
    asked = len(calls)
    assert cluster.max_array == 3
    cluster = open_cluster(plan, "cluster", tmp_path / "run", {})
    cluster.shell = Shell()
    assert find_options(plan, cluster, {}).gpu_dialect == "gpus-per-node"
    assert (len(calls), cluster.max_array) == (asked, 3)
    assert recall_dialect(dialect_file(plan, "cluster", {})) == "gpus-per-node"
    assert dialect_file(plan, "cluster", {"SLURM_CONF": "/other"}) != dialect_file(plan, "cluster", {})


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (Cause.TIMEOUT, TimedOut, "runners.cluster.stages.build.time"),
        (Cause.MEMORY, EnvironmentProblem, "runners.cluster.stages.build.memory"),
        (Cause.NODE, EnvironmentProblem, "trtx apply"),
        (Cause.BOOT, EnvironmentProblem, "trtx apply"),
        (Cause.LOST, EnvironmentProblem, "trtx apply"),
        (Cause.WRONG_GPU, EnvironmentProblem, "sinfo"),
        (Cause.NO_START, EnvironmentProblem, "what the job printed"),
        (Cause.CANCELLED, Interrupted, "trtx apply"),
        (Cause.FAILED, StepFailed, "trtx logs build/a/fp32"),
    ],
)
def test_each_cause_is_the_error_of_its_kind_and_says_what_to_do(
    cause: Cause, kind: type[TrtxError], words: str, tmp_path: Path
) -> None:
    plan = cluster_plan(tmp_path)
    outcome = Outcome("build/a/fp32", TaskState.FAILED, cause, "it broke", attempt=2, job="7_0", node="n1")
    error = make_step_error(plan.step("build/a/fp32"), outcome, None)
    assert type(error) is kind
    assert error.what == "it broke, in attempt 2 (job 7_0 on n1)"
    assert words in error.fix


def test_a_step_that_failed_by_itself_is_reported_in_its_own_words(tmp_path: Path) -> None:
    plan = cluster_plan(tmp_path)
    step = plan.step("build/a/fp32")
    failure = Failure(kind="VerificationFailed", what="it answers wrongly", fix="look")
    place = {"step": step.id, "key": step.key, "attempt": 1, "started": 0.0, "ended": 1.0, "host": "n1", "pid": 1}
    result = Result(state="failed", failure=failure, **place)
    outcome = Outcome(step.id, TaskState.FAILED, Cause.FAILED, "exit code 8", attempt=1)
    assert make_step_error(step, outcome, result).what == "it answers wrongly"
    # Told to stop at its limit it says that it was stopped; the limit is what matters.
    outcome = Outcome(step.id, TaskState.FAILED, Cause.TIMEOUT, "it reached its time limit", attempt=1)
    assert type(make_step_error(step, outcome, result)) is TimedOut
