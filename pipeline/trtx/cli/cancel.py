"""`trtx cancel`: end a run, or some of its jobs, and nothing else."""

from __future__ import annotations

import os
import signal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trtx.cli.options import OutputFormat, OutputOption, RunOption
from trtx.console import Console
from trtx.errors import EnvironmentProblem, UsageProblem, did_you_mean

if TYPE_CHECKING:
    from trtx.plan.record import RunRecord
    from trtx.plan.steps import Plan

SCHEMA = "trtx.cancel/v1"


def command(
    context: typer.Context,
    steps: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Steps whose jobs are ended, such as build/h100/fp8 or 'build/*'; all when left out."),
    ] = None,
    run: RunOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """End the jobs of a run, and what needs them; a run of this machine is told to stop. Nobody else's job is touched.

    What is finished stays in the cache.
    """
    from trtx.plan.record import find_run

    console: Console = context.obj
    record = find_run(Path.cwd(), run)
    if run is None and not record.is_driven_here() and not record.submissions():
        from trtx.plan.cluster_adopt import find_run_with_jobs

        record = find_run_with_jobs(Path.cwd(), None)
    plan = record.load_plan()
    chosen = _choose_steps(plan, steps or [])
    if any(plan.runners[name]["type"] != "sim" for name in record.submissions()):
        ended, complaint = _cancel_jobs(plan, record, chosen)
    else:
        ended, complaint = _stop_driver(record, chosen), ""
    if output is OutputFormat.JSON:
        console.json({"schema": SCHEMA, "run": record.id, "cancelled": ended, "complaint": complaint})
    else:
        console.say(f"run {record.id}: " + (f"cancelled {', '.join(ended)}" if ended else "nothing was left to cancel"))
    if complaint:
        raise EnvironmentProblem(
            "Slurm could not be told to end the jobs",
            why=complaint,
            fix="they are taken back: what has not begun never will, and what runs ends itself within a minute",
        )


def _choose_steps(plan: Plan, patterns: list[str]) -> set[str] | None:
    """The steps that the patterns name; None for all."""
    if not patterns:
        return None
    known = [step.id for step in plan.steps]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {step for step in known if fnmatchcase(step, pattern)}
        if not found:
            raise UsageProblem(f"there is no step '{pattern}'", fix=did_you_mean(pattern, known))
        chosen |= found
    return chosen


def _cancel_jobs(plan: Plan, record: RunRecord, chosen: set[str] | None) -> tuple[list[str], str]:
    """End jobs; the steps they were of, and Slurm's complaint."""
    from trtx.plan.cluster_cancel import cancel_run, cancel_steps

    if chosen is None:
        return cancel_run(plan, record, os.environ)
    return cancel_steps(plan, record, chosen, os.environ)


def _stop_driver(record: RunRecord, chosen: set[str] | None) -> list[str]:
    """Tell the process that runs the steps of this machine to stop, as Ctrl-C would."""
    if chosen is not None:
        raise UsageProblem("steps of this machine cannot be cancelled one by one", fix="`trtx cancel` stops the run")
    if not record.is_driven_here():
        where = f" here; its driver was on {record.driver()['host']}" if record.is_driven() else ""
        raise UsageProblem(f"run {record.id} does not run{where}", fix="`trtx status` shows what became of it")
    os.kill(record.driver()["pid"], signal.SIGTERM)
    running = [event["step"] for event in record.events() if event["event"] == "started"]
    ended = {event["step"] for event in record.events() if event["event"] in ("done", "failed", "interrupted")}
    return [step for step in running if step not in ended]
