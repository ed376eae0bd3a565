"""`trtx apply`: run every step that has to run, and put the packages in place."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

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
    SetOption,
    TextFormat,
    UnsetOption,
    UntilOption,
    make_overrides,
)
from trtx.console import Console
from trtx.errors import Interrupted, StepFailed, TrtxError, UsageProblem

if TYPE_CHECKING:
    from trtx.cli.prepare import Ready, Request
    from trtx.plan.deliver import Delivered
    from trtx.plan.execute import Observer
    from trtx.plan.record import RunRecord
    from trtx.plan.survey import StepStatus

SCHEMA = "trtx.apply/v1"
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|PLAN",
        help="Recipe file; recipe.yaml:h100/fp8 or recipe.yaml:'*/fp8' selects cells. Or a file of `trtx plan -o`.",
    ),
]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `errors` by step id; `record` is None when there was nothing to run and nothing new to note."""

    ready: Ready
    statuses: list[StepStatus]
    record: RunRecord | None
    errors: dict[str, TrtxError]
    seconds: float
    busy: bool
    delivered: tuple[Delivered, ...] = ()

    def to_json(self) -> dict[str, Any]:
        from trtx.cli.prepare import status_rows

        return {
            "schema": SCHEMA,
            "run": self.record.id if self.record else None,
            "recipe": self.ready.plan.recipe,
            "status": status_rows(self.statuses),
            "remotes": self.ready.remotes.to_json() if self.ready.remotes else [],
            "packages": {entry.cell: str(entry.folder) for entry in self.delivered},
        }


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
        bool, typer.Option("--keep-going", help="After a failure, go on with steps that do not depend on it.")
    ] = False,
    out_dir: FolderOption = Path("out"),
    text_format: FormatOption = TextFormat.TEXT,
    junit: JunitOption = None,
) -> None:
    """Run what is not in the cache and write the deployment folders to out/RECIPE/TARGET/VARIANT.

    Stop it with Ctrl-C whenever you like: finished steps stay in the cache and the next apply continues.
    """
    from trtx.cli.github import annotated
    from trtx.cli.locking import check_lock, kept_lock
    from trtx.cli.prepare import Request
    from trtx.plan.preflight import check_machine

    console: Console = context.obj
    request = Request(recipe, make_overrides(settings, removals), until, offline, max_parallel, locked)
    with annotated(console, text_format):
        ready = _make_ready(console, request)
        check_lock(ready)
        check_machine(ready.plan, ready.statuses, ready.facts)
        with kept_lock(console, ready):
            outcome = run_steps(console, ready, keep_going=keep_going)
        if junit is not None:
            from trtx.cli.junit import write_junit

            write_junit(junit, ready.plan.name, outcome.statuses, outcome.errors)
        if not outcome.errors:
            outcome = _deliver(outcome, out_dir)
        if output is OutputFormat.JSON and not outcome.errors:
            console.json(outcome.to_json())
        elif output is OutputFormat.TABLE:
            _print_outcome(console, outcome, text_format)
        if outcome.errors:
            raise make_error(console, outcome)


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
    }
    if given := [name for name, value in changes.items() if value]:
        raise UsageProblem(
            f"{given[0]} cannot change a plan that was kept",
            why=f"{request.argument} is run as it is",
            fix=f"give {given[0]} to `trtx plan`",
        )
    return prepare_saved(console, Path(request.argument), offline=request.offline)


def run_steps(console: Console, ready: Ready, *, keep_going: bool) -> Outcome:
    """Run the plan as a new run; without anything to run, only a plan that is new here is put on record."""
    from trtx.plan.execute import Execution
    from trtx.plan.record import create_run
    from trtx.plan.survey import OPEN
    from trtx.runners.base import find_runner

    began = time.monotonic()
    if not any(status.state in OPEN for status in ready.statuses):
        known = ready.plan == ready.previous
        record = None if known else create_run(Path.cwd(), ready.plan)
        return Outcome(ready, ready.statuses, record, {}, time.monotonic() - began, busy=False)
    ready.store.prepare()
    ready.store.clean_staging()
    record = create_run(Path.cwd(), ready.plan)
    runner = find_runner("local").make_runner(ready.plan.max_parallel)
    with _observer(console, ready.statuses) as observer, _sigterm_as_interrupt():
        execution = Execution(ready.plan, ready.store, runner, record, ready.environ, observer, keep_going=keep_going)
        execution.remotes = ready.remotes
        try:
            execution.run(ready.statuses)
        except KeyboardInterrupt:
            record.add_event("stopped")
            raise Interrupted(
                "the run was stopped",
                why="finished steps are in the cache",
                fix="run the same `trtx apply` again to continue",
            ) from None
    for warning in execution.warnings:
        console.warn(warning)
    statuses = list(execution.statuses.values())
    return Outcome(ready, statuses, record, execution.errors, time.monotonic() - began, busy=True)


def _deliver(outcome: Outcome, out_dir: Path) -> Outcome:
    """Put the packages in place."""
    from trtx.plan.deliver import deliver
    from trtx.plan.survey import State

    remade = {status.step.id for status in outcome.statuses if status.state is State.DONE}
    ready = outcome.ready
    return replace(outcome, delivered=tuple(deliver(ready.plan, ready.store, out_dir, remade)))


def make_error(console: Console, outcome: Outcome) -> TrtxError:
    """One error for all failed steps; its exit code is theirs when they agree, else 1."""
    assert outcome.record is not None  # noqa: S101  Steps that failed ran in a run.
    (first, cause), *others = outcome.errors.items()
    for step, error in others:
        console.error(f"error: {step} failed: {error.what}")
    kind = type(cause) if len({type(error) for error in outcome.errors.values()}) == 1 else StepFailed
    log = outcome.record.log(first, outcome.record.attempts(first)[-1])
    fix = f"{cause.fix}\n  log: {log}" if cause.fix else f"trtx logs {first}\n  log: {log}"
    error = kind(f"{first} failed: {cause.what}", why=cause.why, fix=fix)
    error.document = outcome.to_json() | {"error": error.to_json()}
    return error


@contextmanager
def _observer(console: Console, statuses: list[StepStatus]) -> Iterator[Observer]:
    from trtx.cli.display import LiveObserver, PlainObserver, make_live_table

    if not console.interactive or console.verbosity < 0:
        yield PlainObserver(console)
        return
    from rich.console import Console as RichConsole
    from rich.live import Live

    rich_console = RichConsole(file=console.err, no_color=not console.color)
    with Live(make_live_table(statuses), console=rich_console, refresh_per_second=4, transient=True) as live:
        yield LiveObserver(live)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A driver that is told to leave stops its children as with Ctrl-C."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_outcome(console: Console, outcome: Outcome, text_format: TextFormat) -> None:
    from trtx.cli.display import format_duration, print_table

    took = format_duration(outcome.seconds)
    if outcome.errors:
        what, style = f"{len(outcome.errors)} step{'s' * (len(outcome.errors) > 1)} failed, {took}", "error"
    else:
        done = "done" if outcome.busy else "nothing to run: every step is in the cache"
        what, style = f"{done}, {took}", "ok"
    folders = [f"{entry.cell}: {entry.folder}" for entry in outcome.delivered]
    if text_format is TextFormat.GITHUB:
        from trtx.cli.github import make_summary, publish_summary

        publish_summary(
            console, make_summary(f"trtx apply {outcome.ready.plan.recipe}", outcome.statuses, what, folders)
        )
        return
    print_table(console, outcome.statuses)
    console.say(what, style=style)
    for line in folders:
        console.say(f"  {line}")
    if outcome.delivered:
        console.say(f"next: trtx serve {outcome.delivered[0].engine}")
