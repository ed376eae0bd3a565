"""`trtx diff`: what two recipes, two locks or two runs do not have in common, by meaning."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console
from trtx.errors import EXIT_PLAN_HAS_CHANGES, TrtxError, UsageProblem

if TYPE_CHECKING:
    from trtx.plan.diff_commands import CommandChange
    from trtx.plan.record import RunRecord

Kind = Literal["recipe", "lock", "run"]
LOCK_SUFFIX = ".lock.yaml"
# Made in trtx.plan.record: the time, and four digits that tell runs of one second apart.
RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
SideArgument = Annotated[str, typer.Argument(help="A recipe (with a selection), a lock, or a run by id or folder.")]


class Compared(NamedTuple):
    """A finished comparison: whether there is no difference, all of it for tools, and how to print it."""

    equal: bool
    body: dict[str, Any]
    show: Callable[[Console], None]


def command(
    context: typer.Context,
    a: SideArgument,
    b: SideArgument,
    output: OutputOption = OutputFormat.TABLE,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Leave with 5 when there is a difference.")
    ] = False,
) -> None:
    """Compare two recipes, two locks or two runs by what they mean.

    Recipes: defaults, variables, units, order and formatting do not count; cells are compared one by one.
    """
    console: Console = context.obj
    kinds = tuple(kind_of(side) for side in (a, b))
    if kinds[0] != kinds[1]:
        raise UsageProblem(
            f"a {kinds[0]} and a {kinds[1]} cannot be compared",
            why=f"{a} is a {kinds[0]}, {b} is a {kinds[1]}",
            fix="give two recipes, two locks or two runs",
        )
    compared = {"recipe": _compare_recipes, "lock": _compare_locks, "run": _compare_runs}[kinds[0]](console, a, b)
    if output is OutputFormat.JSON:
        head = {"schema": "trtx.diff/v1", "kind": kinds[0], "a": a, "b": b, "equal": compared.equal}
        console.json(head | compared.body)
    else:
        compared.show(console)
    if detailed_exitcode and not compared.equal:
        raise typer.Exit(EXIT_PLAN_HAS_CHANGES)


def kind_of(side: str) -> Kind:
    """What an argument names: a lock by its suffix, a run by its folder or by what an id looks like, else a recipe."""
    if side.endswith(LOCK_SUFFIX):
        return "lock"
    return "run" if RUN_ID.fullmatch(side) or (Path(side) / "plan.json").is_file() else "recipe"


def _compare_recipes(console: Console, a: str, b: str) -> Compared:
    from dataclasses import replace

    from trtx.cli import differences
    from trtx.cli.prepare import Request, prepare
    from trtx.hardware import support
    from trtx.plan.diff import compare_plans, compare_recipes
    from trtx.plan.diff_commands import compare_commands
    from trtx.plan.site import site_runners
    from trtx.plan.steps import split_selection
    from trtx.recipe.cells import select_cells
    from trtx.recipe.checks import read_recipe

    sides = []
    for side in (a, b):
        path, glob = split_selection(side)
        loaded = read_recipe(path, support, site=site_runners(os.environ))
        sides.append((loaded, select_cells(loaded.cells(), glob)))
    diff = compare_recipes(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    steps, unknown = None, ""
    commands: tuple[CommandChange, ...] = ()
    releases: list[list[dict[str, Any]]] = [[], []]
    try:
        quiet = replace(console, verbosity=-1)
        first, second = (prepare(quiet, Request(side, offline=True)) for side in (a, b))
        steps = compare_plans(first.plan, second.plan)
        commands = compare_commands((first.cells, first.sources), (second.cells, second.sources))
        releases = [side.sources.describe_releases(side.cells) for side in (first, second)]
    except TrtxError as error:
        unknown = error.what
    body = differences.recipe_json(diff, steps, unknown, commands)
    body["releases"] = {"old": releases[0], "new": releases[1]}

    def show(out: Console) -> None:
        differences.print_recipes(out, diff, steps, unknown)
        differences.print_releases(out, *releases)
        differences.print_commands(out, commands, len(diff.cells))

    return Compared(diff.equal, body, show)


def _compare_locks(console: Console, a: str, b: str) -> Compared:
    from trtx.cli import differences
    from trtx.plan.lock import read_lock
    from trtx.plan.lock_changes import compare_locks

    locks = []
    for side in (a, b):
        lock = read_lock(Path(side))
        if lock is None:
            raise UsageProblem(f"there is no lock {side}", fix="`trtx lock RECIPE` writes one")
        locks.append(lock)
    changes = compare_locks(locks[0], locks[1])
    body = {"changes": [change.to_json() for change in changes]}
    return Compared(not changes, body, lambda out: differences.print_locks(out, changes))


def _compare_runs(console: Console, a: str, b: str) -> Compared:
    from trtx.cli import differences
    from trtx.plan.diff_runs import compare_runs

    diff = compare_runs(_find_run(a), _find_run(b))
    return Compared(diff.equal, differences.run_json(diff), lambda out: differences.print_runs(out, diff))


def _find_run(side: str) -> RunRecord:
    from trtx.plan.record import RunRecord, find_run

    folder = Path(side)
    return RunRecord(folder) if (folder / "plan.json").is_file() else find_run(Path.cwd(), side)
