"""`trtx status`: the steps of a run, running or ended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtx.cli.options import OutputFormat, OutputOption, RunOption
from trtx.console import Console
from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.plan.cluster_view import ClusterView
    from trtx.plan.record import RunRecord
    from trtx.plan.steps import Plan
    from trtx.plan.survey import StepStatus

SCHEMA = "trtx.status/v1"
# How often a watched table is drawn.
WATCH_S = 1.0


def command(
    context: typer.Context,
    run: RunOption = None,
    output: OutputOption = OutputFormat.TABLE,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing the table until the run ends.")] = False,
) -> None:
    """Show what every step of a run is doing; the latest run of this folder unless --run names one.

    Jobs on a cluster are looked at themselves, and Slurm is asked about them, also when no process follows the run.
    """
    from trtx.plan.record import find_run

    console: Console = context.obj
    if watch and output is OutputFormat.JSON:
        raise UsageProblem("--watch prints a table that changes, which is not one JSON document", fix="leave one out")
    record = find_run(Path.cwd(), run)
    plan = record.load_plan()
    view = _make_view(plan, record)
    if watch:
        _watch(console, plan, record, view)
        return
    statuses = _look(plan, record, view)
    if output is OutputFormat.JSON:
        console.json(_to_json(plan, record, view, statuses))
        return
    _print(console, plan, record, view, statuses)


def _make_view(plan: Plan, record: RunRecord) -> ClusterView | None:
    if not record.submissions():
        return None
    from trtx.plan.cluster_view import ClusterView

    return ClusterView(plan, record, os.environ)


def _look(plan: Plan, record: RunRecord, view: ClusterView | None) -> list[StepStatus]:
    from trtx.cache.store import Store
    from trtx.plan.survey import overlay, survey

    jobs = view.look() if view else {}
    return overlay(survey(plan, Store(Path(plan.cache_dir))), record, jobs)


def _to_json(plan: Plan, record: RunRecord, view: ClusterView | None, statuses: list[StepStatus]) -> dict[str, Any]:
    from trtx.cli.prepare import status_rows

    return {
        "schema": SCHEMA,
        "run": record.id,
        "recipe": plan.recipe,
        "driven": record.is_driven(),
        "jobs": _has_jobs(statuses),
        "silence": view.silence() if view else "",
        "status": status_rows(statuses),
    }


def _print(
    console: Console, plan: Plan, record: RunRecord, view: ClusterView | None, statuses: list[StepStatus]
) -> None:
    from trtx.cli.display import print_table

    print_table(console, statuses)
    if view and view.silence():
        console.warn(f"Slurm gave no answer: {view.silence()}; what is shown is what the jobs themselves wrote")
    console.say(f"run {record.id} of {plan.recipe}: {_describe(record, statuses)}")


def _has_jobs(statuses: list[StepStatus]) -> bool:
    """Whether jobs wait or run."""
    from trtx.plan.survey import State

    return any(status.job is not None and status.state in (State.QUEUED, State.RUNNING) for status in statuses)


def _describe(record: RunRecord, statuses: list[StepStatus]) -> str:
    if record.is_driven():
        return "in progress"
    if _has_jobs(statuses):
        return "its jobs go on, and no process follows them: `trtx attach` does"
    return "ended"


def _watch(console: Console, plan: Plan, record: RunRecord, view: ClusterView | None) -> None:
    """Draw the table until nothing is under way; without a terminal, one line for each change."""
    from trtx.cli.display import PlainObserver
    from trtx.cli.driving import observing

    statuses = _look(plan, record, view)
    seen: dict[str, str] = {}
    with observing(console, statuses) as observer:
        while True:
            for status in statuses:
                if isinstance(observer, PlainObserver) and seen.get(status.step.id) != status.state.value:
                    observer.changed(status)
                seen[status.step.id] = status.state.value
            observer.tick(statuses)
            if not (record.is_driven() or _has_jobs(statuses)):
                break
            time.sleep(WATCH_S)
            statuses = _look(plan, record, view)
    _print(console, plan, record, view, statuses)
