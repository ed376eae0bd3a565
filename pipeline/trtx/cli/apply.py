"""`trtx apply`: run every step that has to run, and put the packages in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtx.cli.options import (
    FolderOption,
    FormatOption,
    JunitOption,
    LockedOption,
    OfflineOption,
    OutputFormat,
    OutputOption,
    ParallelOption,
    RunnerOption,
    SetOption,
    TextFormat,
    UnsetOption,
    UntilOption,
    make_overrides,
)
from trtx.console import Console
from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.cli.driving import Outcome
    from trtx.cli.prepare import Ready, Request
    from trtx.plan.survey import StepStatus

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|PLAN",
        help="Recipe file; recipe.yaml:h100/fp8 or recipe.yaml:'*/fp8' selects cells. Or a file of `trtx plan -o`.",
    ),
]


def command(
    context: typer.Context,
    recipe: RunArgument,
    output: OutputOption = OutputFormat.TABLE,
    settings: SetOption = None,
    removals: UnsetOption = None,
    until: UntilOption = None,
    offline: OfflineOption = False,
    locked: LockedOption = False,
    max_parallel: ParallelOption = None,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help="After a failure, go on with steps that do not depend on it. Jobs on a cluster always do.",
        ),
    ] = False,
    runner: RunnerOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave when the jobs are submitted; `trtx attach` follows them later.")
    ] = False,
    out_dir: FolderOption = Path("out"),
    text_format: FormatOption = TextFormat.TEXT,
    junit: JunitOption = None,
) -> None:
    """Run what is not in the cache and write the deployment folders to out/RECIPE/TARGET/VARIANT.

    Stop it with Ctrl-C whenever you like: finished steps stay in the cache and the next apply continues. Jobs on a
    cluster go on by themselves: `trtx attach` follows them again, `trtx cancel` ends them.
    """
    from trtx.cli.driving import deliver_packages, make_error, print_outcome, publish_outcome
    from trtx.cli.github import annotated
    from trtx.cli.junit import reporting, write_junit
    from trtx.cli.locking import check_lock, kept_lock
    from trtx.cli.prepare import Request

    console: Console = context.obj
    overrides = make_overrides(settings, removals)
    request = Request(recipe, overrides, until, offline, max_parallel, locked, runner=runner)
    with annotated(console, text_format), reporting(junit):
        ready = _make_ready(console, request)
        check_lock(ready)
        with kept_lock(console, ready):
            outcome = _run(console, ready, keep_going=keep_going, detach=detach)
        if junit is not None:
            write_junit(junit, ready.plan.name, outcome.statuses, outcome.errors)
        if not outcome.errors and not outcome.detached:
            outcome = deliver_packages(outcome, out_dir)
        as_json = output is OutputFormat.JSON
        if as_json and not outcome.errors:
            console.json(outcome.to_json())
        if text_format is TextFormat.GITHUB:
            publish_outcome(console, outcome, printed=not as_json)
        elif not as_json:
            print_outcome(console, outcome)
        if outcome.errors:
            raise make_error(console, outcome)


def _run(console: Console, ready: Ready, *, keep_going: bool, detach: bool) -> Outcome:
    """Run the plan, or follow the run whose jobs make just that."""
    from trtx.cli.driving import adopt_run, run_steps
    from trtx.plan.cluster import runs_on_cluster
    from trtx.plan.preflight import check_machine
    from trtx.plan.survey import OPEN

    here = [status for status in ready.statuses if not runs_on_cluster(ready.plan, status.step)]
    there = [status for status in ready.statuses if runs_on_cluster(ready.plan, status.step)]
    check_machine(ready.plan, here, ready.facts)
    if detach:
        _refuse_to_detach(ready, there)
    if any(status.state in OPEN for status in there):
        from trtx.plan.cluster_adopt import find_adoptable

        if record := find_adoptable(Path.cwd(), ready.plan, ready.statuses):
            console.say(f"run {record.id} has jobs that make this: it is followed, and nothing is submitted twice")
            return adopt_run(console, ready, record, detach=detach)
        _check_interpreters(ready, there)
    return run_steps(console, ready, keep_going=keep_going, detach=detach)


def _check_interpreters(ready: Ready, there: list[StepStatus]) -> None:
    """Refuse a runner whose interpreter is not what the plan was made with, at its place in the recipe."""
    from trtx.cli.prepare import Prepared
    from trtx.plan.cluster_python import find_mismatches

    for found in find_mismatches(ready.plan, there, ready.environ):
        what = f"jobs of runner '{found.runner}' could not run what was planned"
        if isinstance(ready, Prepared) and found.runner in ready.loaded.recipe.runners:
            own = ready.loaded.recipe.runners[found.runner].model_fields_set
            path = ("runners", found.runner, *(("python",) if "python" in own else ()))
            ready.loaded.refuse(path, what, why=found.what, fix=found.fix)
        raise UsageProblem(what, why=found.what, fix=found.fix)


def _refuse_to_detach(ready: Ready, there: list[StepStatus]) -> None:
    if not there:
        raise UsageProblem(
            "--detach needs steps that run on a cluster",
            why="steps of this machine end with the process that drives them",
            fix="name a runner of type slurm in the recipe's targets, or with --runner",
        )
    if any(ready.plan.runners[status.step.runner]["type"] == "sim" for status in there):
        raise UsageProblem("--detach cannot be used with a simulated cluster", why="it ends with this process")


def _make_ready(console: Console, request: Request) -> Ready:
    """The plan of a recipe, or the one in a file, which nothing may change."""
    from trtx.cli.prepare import prepare, prepare_saved
    from trtx.plan.saved import is_saved_plan

    if not is_saved_plan(request.argument):
        return prepare(console, request)
    changes = {
        "--set": request.overrides.set,
        "--unset": request.overrides.unset,
        "--until": request.until,
        "--max-parallel": request.max_parallel,
        "--locked": request.locked,
        "--runner": request.runner,
    }
    if given := [name for name, value in changes.items() if value]:
        raise UsageProblem(
            f"{given[0]} cannot change a plan that was kept",
            why=f"{request.argument} is run as it is",
            fix=f"give {given[0]} to `trtx plan`",
        )
    return prepare_saved(console, Path(request.argument), offline=request.offline)
