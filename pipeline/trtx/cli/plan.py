"""`trtx plan`: what `apply` would do, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from trtx.cli.options import (
    OfflineOption,
    OutputFormat,
    OutputOption,
    ParallelOption,
    RecipeArgument,
    SetOption,
    UnsetOption,
    UntilOption,
    make_overrides,
)
from trtx.console import Console
from trtx.errors import EXIT_PLAN_HAS_CHANGES


def command(
    context: typer.Context,
    recipe: RecipeArgument,
    output: OutputOption = OutputFormat.TABLE,
    settings: SetOption = None,
    removals: UnsetOption = None,
    until: UntilOption = None,
    offline: OfflineOption = False,
    max_parallel: ParallelOption = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Leave with 5 when something would run.")
    ] = False,
) -> None:
    """Show every step with its state, its key and the reason, and run nothing."""
    from trtx.cli.display import print_table
    from trtx.cli.prepare import Request, prepare, status_rows
    from trtx.plan.survey import State

    console: Console = context.obj
    overrides = make_overrides(settings, removals)
    prepared = prepare(console, Request(recipe, overrides, until, offline, max_parallel))
    to_run = [status for status in prepared.statuses if status.state in (State.TO_RUN, State.WAITING)]
    if output is OutputFormat.JSON:
        console.json({**prepared.plan.to_json(), "status": status_rows(prepared.statuses)})
    else:
        print_table(console, prepared.statuses)
        cached = sum(status.state is State.CACHED for status in prepared.statuses)
        console.say(f"{len(to_run)} of {len(prepared.statuses)} steps to run, {cached} cached")
        if to_run:
            console.say(f"next: trtx apply {recipe}")
    if detailed_exitcode and to_run:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)
