"""`trtx lock`: pin what a recipe leaves open, in a file to commit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from trtx.cli.options import OutputFormat, OutputOption, RecipeArgument, StageName
from trtx.console import Console
from trtx.errors import EnvironmentProblem, LockOutOfDate, UsageProblem

if TYPE_CHECKING:
    from trtx.cli.prepare import Prepared
    from trtx.plan.lock_changes import LockChange

SCHEMA = "trtx.lock-result/v1"


def command(
    context: typer.Context,
    recipe: RecipeArgument,
    output: OutputOption = OutputFormat.TABLE,
    upgrade: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--upgrade",
            metavar="WHAT",
            help="Look up anew: model, dataset, container, all, or one by its URL or image; build, or one by its step, "
            "has an engine that is not in the cache measured anew. May be repeated.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write and fetch nothing; leave with 7 when the lock would change.")
    ] = False,
) -> None:
    """Write recipe.lock.yaml: commits and digests of models, datasets and base images, rows, tools, and cache keys.

    What is pinned stays pinned until --upgrade; a model that is not in the cache is fetched, for the digests of its
    files. `trtx apply` uses the lock and keeps it up to date; `trtx apply --locked` refuses where it would change.
    """
    from trtx.cli import locking
    from trtx.cli.prepare import Request, prepare
    from trtx.plan.lock import write_lock
    from trtx.plan.lock_changes import compare_locks
    from trtx.plan.offline import check_locked_files
    from trtx.plan.steps import split_selection

    console: Console = context.obj
    if (source := split_selection(recipe)[0]).exists() and not source.is_file():
        raise UsageProblem(
            f"{source} is not a file, so a lock has no place beside it", fix="write the recipe to a file"
        )
    request = Request(recipe, until=StageName.DATASET, upgrade=tuple(upgrade or ()))
    prepared, warnings = _pin_images(console, prepare(console, request))
    path = locking.lock_of(prepared)
    if check:
        check_locked_files(prepared.statuses)
        changes = locking.find_changes(prepared, locking.make_current_lock(prepared))
        _print_json(console, output, prepared, changes, warnings)
        if (changes or prepared.lock is None) and output is OutputFormat.JSON:
            raise typer.Exit(LockOutOfDate.exit_code)
        if changes or prepared.lock is None:
            raise locking.out_of_date(path, changes, recipe)
        console.say(f"{path} is up to date", style="ok")
        return
    _fetch(console, prepared)
    new = locking.make_current_lock(prepared)
    changes = compare_locks(prepared.lock, new)
    if new != prepared.lock:
        write_lock(path, new)
    _print_json(console, output, prepared, changes, warnings)
    if output is OutputFormat.TABLE:
        _print(console, prepared, changes)


def _pin_images(console: Console, prepared: Prepared) -> tuple[Prepared, list[str]]:
    """Ask the registries of images that are not pinned; one that does not answer is a warning."""
    from trtx.models.sources.base import is_offline
    from trtx.plan.registry import ask_digest

    sources, found, warnings = prepared.sources, {}, []
    for reference in sorted({name for cell in prepared.cells for name in sources.references_of(cell)}):
        if "@" in reference or reference in sources.images or is_offline(prepared.environ):
            continue
        try:
            found[reference] = f"{reference}@{ask_digest(reference)}"
        except EnvironmentProblem as error:
            before = prepared.lock.containers.get(reference) if prepared.lock else None
            state = "stays without a digest"
            if before and before.digest:
                state = "keeps its digest"
                found[reference] = f"{reference}@{before.digest}"
            warnings.append(f"{reference} {state}: {error.what} ({error.why})")
            console.warn(warnings[-1])
    return replace(prepared, sources=replace(sources, images={**sources.images, **found})), warnings


def _fetch(console: Console, prepared: Prepared) -> None:
    """Run the steps that fetch what the lock must tell of and does not yet. Raises the error of one that fails."""
    from trtx.cli import driving, locking
    from trtx.plan.lock_make import is_told
    from trtx.plan.offline import check_locked_files, check_offline
    from trtx.plan.preflight import check_machine
    from trtx.plan.survey import OPEN

    check_locked_files(prepared.statuses)
    known = locking.make_current_lock(prepared)
    statuses = [status for status in prepared.statuses if status.state in OPEN and not is_told(known, status.step)]
    if not statuses:
        return
    check_offline(statuses, prepared.environ)
    plan = replace(prepared.plan, steps=tuple(status.step for status in statuses))
    check_machine(plan, statuses, prepared.facts)
    outcome = driving.run_steps(console, replace(prepared, plan=plan, statuses=statuses), keep_going=True)
    if outcome.errors:
        raise driving.make_error(console, outcome)


def _print_json(
    console: Console, output: OutputFormat, prepared: Prepared, changes: list[LockChange], warnings: list[str]
) -> None:
    from trtx.cli.locking import lock_of

    if output is not OutputFormat.JSON:
        return
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "recipe": prepared.plan.recipe,
        "lock": str(lock_of(prepared)),
        "created": prepared.lock is None,
        "changes": [change.to_json() for change in changes],
        "warnings": warnings,
    }
    console.json(body)


def _print(console: Console, prepared: Prepared, changes: list[LockChange]) -> None:
    from trtx.cli.locking import lock_of

    path = lock_of(prepared)
    if prepared.lock is None:
        console.say(f"wrote {path}: commit it", style="ok")
    elif not changes:
        console.say(f"nothing changed: {path} is up to date", style="ok")
    else:
        for change in changes:
            console.say(f"  {change}")
        console.say(f"wrote {path}", style="ok")
    console.say(f"next: trtx apply {prepared.request.argument} --locked")
