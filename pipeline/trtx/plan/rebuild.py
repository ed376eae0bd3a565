"""Builds engines of a plan once more in scratch space, for `trtx verify --rebuild`: which, and with what."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from trtx.cache.manifest import Manifest
from trtx.errors import EnvironmentProblem, StepFailed, TrtxError, VerificationFailed
from trtx.files import write_text
from trtx.plan.environment import fill_environment
from trtx.plan.keys import find_changes
from trtx.plan.lock import Lock
from trtx.plan.steps import Plan, Step
from trtx.plan.survey import State, StepStatus
from trtx.plan.why import Entries
from trtx.runners.base import Task
from trtx.runners.local import LocalRunner
from trtx.stages.job import JOB_NAME, Failure, dump_file
from trtx.stages.rebuild_report import REPORT_NAME, Report

# The shelf of kernel libraries is below it: what is compared must have been compiled in this call.
SHELF = "XDG_CACHE_HOME"
LOG_NAME = "rebuild.log"
POLL_S = 1.0
GRACE_S = 10.0
# What of a build's factors makes it another environment, rather than another engine.
ENVIRONMENT = ("toolchain", "code")


def list_builds(statuses: Sequence[StepStatus]) -> list[StepStatus]:
    """The steps that make engines."""
    return [status for status in statuses if status.step.stage == "build"]


def find_obstacle(
    plan: Plan, status: StepStatus, statuses: Sequence[StepStatus], entries: Entries, lock: Lock | None
) -> TrtxError | None:
    """Why a build cannot be compared with its entry here; None when it can be tried."""
    step = status.step
    if status.corrupt:
        return VerificationFailed(f"the entry of {step.id} is damaged", why=status.reason, fix="run `trtx apply` again")
    if status.manifest is None:
        return _describe_missing(step, entries, lock)
    states = {other.step.id: other.state for other in statuses}
    missing = [entry.step for entry in step.inputs.values() if states[entry.step] is not State.CACHED]
    if missing:
        stage = plan.step(missing[0]).stage
        return EnvironmentProblem(
            f"{step.id} cannot be rebuilt: its input {missing[0]} is not in the cache",
            fix=f"`trtx apply {plan.recipe} --until {stage}` makes it",
        )
    return None


def _describe_missing(step: Step, entries: Entries, lock: Lock | None) -> TrtxError:
    """There is no entry of the step's key: an engine of other tools, where there is one, or none."""
    nearest = _find_like(step, entries, lock)
    changes = find_changes(nearest.factors, step.factors) if nearest else []
    if nearest and changes and all(str(change.path[0]) in ENVIRONMENT for change in changes):
        return EnvironmentProblem(
            f"{step.id} cannot be rebuilt here: its entry {nearest.key[:12]} was made with other tools",
            why="; ".join(map(str, changes)),
            fix="install what the entry was made with, or build anew: `trtx apply`",
        )
    return EnvironmentProblem(f"{step.id} has no entry to compare with", fix="`trtx apply` makes it")


def _find_like(step: Step, entries: Entries, lock: Lock | None) -> Manifest | None:
    """The entry that the lock names for the step, else the most similar one."""
    named = next((lock.entries[name] for name in step.names if name in lock.entries), None) if lock else None
    return entries.by_key.get(named or "") or entries.nearest(step)


def run_rebuild(plan: Plan, step: Step, manifest: Manifest, scratch: Path, environ: Mapping[str, str]) -> Report:
    """Build once more below `scratch`, on this machine, with what the entry's manifest says was measured, and compare.

    Raises nothing for what fails: the report has it. A KeyboardInterrupt ends the build and passes on.
    """
    folder = scratch / step.id
    folder.mkdir(parents=True)
    job = replace(step, choices=read_choices(manifest)).job(plan)
    write_text(folder / JOB_NAME, dump_file(job))
    task = Task(
        step=step.id,
        argv=(sys.executable, "-m", "trtx.stages.rebuild", JOB_NAME),
        folder=folder,
        environment=fill_environment(step.environment, step.inherit, environ) | {SHELF: str(scratch / "cache")},
        log=folder / LOG_NAME,
    )
    runner = LocalRunner(1)
    runner.start(task)
    try:
        while not (ended := runner.wait(POLL_S)):
            pass
    finally:
        runner.stop(GRACE_S)
    return read_report(folder, step, ended[0].signal)


def read_choices(manifest: Manifest) -> dict[str, object]:
    """What an entry's build measured, for the build that repeats it."""
    from trtx.backends.inductor.replay import keep_measured

    choices = manifest.summary.get("choices")
    return keep_measured(choices) if isinstance(choices, dict) else {}


def read_report(folder: Path, step: Step, signal: int | None) -> Report:
    """What a rebuild left; that it left nothing is a failure as well."""
    try:
        return Report.model_validate_json((folder / REPORT_NAME).read_bytes())
    except (OSError, ValidationError, json.JSONDecodeError):
        log = folder / LOG_NAME
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        how = f"it was killed by signal {signal}; most often memory ran out" if signal else "it left no report"
        error = StepFailed(f"{step.id} could not be rebuilt", why=": ".join([how, *lines[-1:]]))
        return Report(step=step.id, key=step.key, failure=Failure.of(error))
