"""`trtx plan`: what `apply` would do, and why."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtx.cli.options import (
    FormatOption,
    LockedOption,
    OfflineOption,
    OutputFormat,
    ParallelOption,
    RecipeArgument,
    RunnerOption,
    SetOption,
    TextFormat,
    UnsetOption,
    UntilOption,
    make_overrides,
    spell,
)
from trtx.console import Console
from trtx.errors import EXIT_PLAN_HAS_CHANGES, UsageProblem

if TYPE_CHECKING:
    from trtx.cli.prepare import Prepared

PlanOutputOption = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="table|json|FILE.json",
        help="How to print the plan; a file keeps it for `trtx apply FILE.json`.",
    ),
]


def command(
    context: typer.Context,
    recipe: RecipeArgument,
    output: PlanOutputOption = OutputFormat.TABLE.value,
    settings: SetOption = None,
    removals: UnsetOption = None,
    until: UntilOption = None,
    offline: OfflineOption = False,
    locked: LockedOption = False,
    max_parallel: ParallelOption = None,
    text_format: FormatOption = TextFormat.TEXT,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Leave with 5 when something would run.")
    ] = False,
    runner: RunnerOption = None,
    scripts: Annotated[
        bool, typer.Option("--scripts", help="Print the batch scripts on stdout, as they would be submitted.")
    ] = False,
) -> None:
    """Show every step with its state, its key and the reason, and run nothing.

    `trtx plan RECIPE -o plan.json` keeps the plan: `trtx apply plan.json` runs exactly that, or refuses when the
    recipe, a source or a tool changed since.
    """
    from trtx.cli.display import print_table
    from trtx.cli.github import annotated
    from trtx.cli.locking import check_lock
    from trtx.cli.prepare import Request, prepare, status_rows
    from trtx.plan.saved import SUFFIX, save_plan, seal
    from trtx.plan.survey import OPEN

    console: Console = context.obj
    as_json, to_file = output == OutputFormat.JSON.value, output.endswith(SUFFIX)
    if not (as_json or to_file or output == OutputFormat.TABLE.value):
        raise UsageProblem(f"-o cannot be '{output}'", fix="give table, json, or a file that ends in .json")
    overrides = make_overrides(settings, removals)
    with annotated(console, text_format):
        prepared = prepare(console, Request(recipe, overrides, until, offline, max_parallel, locked, runner=runner))
        check_lock(prepared)
        if to_file:
            save_plan(Path(output), prepared.plan)
    to_do = [status for status in prepared.statuses if status.state in OPEN]
    if as_json:
        remotes = prepared.remotes.to_json() if prepared.remotes else []
        body = {**seal(prepared.plan.to_json()), "status": status_rows(prepared.statuses), "remotes": remotes}
        body["releases"] = prepared.sources.describe_releases(prepared.cells)
        if scripts:
            from trtx.cli.scripts import describe_scripts

            body["scripts"] = describe_scripts(prepared)
        console.json(body)
    if text_format is TextFormat.GITHUB:
        from trtx.cli.github import make_summary, publish_summary

        title, outcome = f"trtx plan {prepared.plan.recipe}", _describe(prepared, len(to_do))
        publish_summary(console, make_summary(title, prepared.statuses, outcome), printed=not as_json)
    elif not as_json:
        print_table(console, prepared.statuses)
        for row in prepared.sources.describe_releases(prepared.cells):
            console.say(_describe_release(row))
        console.say(_describe(prepared, len(to_do)))
        if to_do:
            there = f" --runner {shlex.quote(runner)}" if runner and not to_file else ""
            console.say(f"next: trtx apply {spell(output) if to_file else spell(recipe, overrides)}{there}")
        if scripts:
            from trtx.cli.scripts import print_scripts

            print_scripts(console, prepared)
    if to_file:
        console.say(f"wrote {output}")
    if detailed_exitcode and to_do:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def _describe(prepared: Prepared, num_to_do: int) -> str:
    """How much there is to do, in one line."""
    from trtx.plan.survey import State

    cached = sum(status.state is State.CACHED for status in prepared.statuses)
    remote = sum(status.state is State.REMOTE for status in prepared.statuses)
    outcome = f"{num_to_do - remote} of {len(prepared.statuses)} steps to run, {cached} cached"
    return outcome + (f", {remote} to take from remotes" if remote else "")


def _describe_release(row: Mapping[str, Any]) -> str:
    """One release in one line; what no source says is left out."""
    tables = {"exact": "exact tables", "derived": "derived tables", "probe": "probed"}[row["tables"]]
    image = row["image"] or "no image"
    pinned = f"@{row['digest'][:19]}…" if row["digest"] and "@" not in image else ""
    facts = [
        f"{title} {row[name]}"
        for name, title in (("tensorrt", "TensorRT"), ("cuda", "CUDA"), ("modelopt", "ModelOpt"), ("python", "Python"))
        if row[name]
    ]
    driver = [f"driver {row['min_driver']} or newer"] if row["min_driver"] else []
    unpinned = "" if row["digest"] or not row["image"] else " (no digest yet: trtx lock)"
    return f"TensorRT-LLM {row['release']} ({tables}): {', '.join([*facts, *driver])}; {image}{pinned}{unpinned}"
