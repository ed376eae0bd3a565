"""`trtx status`: the steps of a run, running or ended."""

from __future__ import annotations

from pathlib import Path

import typer

from trtx.cli.options import OutputFormat, OutputOption, RunOption
from trtx.console import Console


def command(context: typer.Context, run: RunOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show what every step of a run is doing; the latest run of this folder unless --run names one."""
    from trtx.cache.store import Store
    from trtx.cli.display import print_table
    from trtx.cli.prepare import status_rows
    from trtx.plan.record import find_run
    from trtx.plan.survey import overlay, survey

    console: Console = context.obj
    record = find_run(Path.cwd(), run)
    plan = record.load_plan()
    statuses = overlay(survey(plan, Store(Path(plan.cache_dir))), record)
    if output is OutputFormat.JSON:
        body = {"schema": "trtx.status/v1", "run": record.id, "recipe": plan.recipe, "driven": record.is_driven()}
        console.json({**body, "status": status_rows(statuses)})
        return
    print_table(console, statuses)
    console.say(f"run {record.id} of {plan.recipe}: {'in progress' if record.is_driven() else 'ended'}")
