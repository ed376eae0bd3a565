"""`trtx apply`: run every step that has to run, and put the packages in place."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtx.cli.options import (
    FolderOption,
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
from trtx.errors import Interrupted, StepFailed, TrtxError

if TYPE_CHECKING:
    from trtx.cli.prepare import Prepared
    from trtx.plan.deliver import Delivered
    from trtx.plan.execute import Observer
    from trtx.plan.record import RunRecord
    from trtx.plan.survey import StepStatus


def command(
    context: typer.Context,
    recipe: RecipeArgument,
    output: OutputOption = OutputFormat.TABLE,
    settings: SetOption = None,
    removals: UnsetOption = None,
    until: UntilOption = None,
    offline: OfflineOption = False,
    max_parallel: ParallelOption = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="After a failure, go on with steps that do not depend on it.")
    ] = False,
    out_dir: FolderOption = Path("out"),
) -> None:
    """Run what is not in the cache and write the deployment folders to out/RECIPE/TARGET/VARIANT.

    Stop it with Ctrl-C whenever you like: finished steps stay in the cache and the next apply continues.
    """
    from trtx.cli.prepare import Request, prepare, status_rows
    from trtx.plan.deliver import deliver
    from trtx.plan.preflight import check_machine
    from trtx.plan.survey import State

    console: Console = context.obj
    began = time.monotonic()
    overrides = make_overrides(settings, removals)
    prepared = prepare(console, Request(recipe, overrides, until, offline, max_parallel))
    check_machine(prepared.plan, prepared.statuses, prepared.facts, prepared.gpus)
    busy = any(status.state in (State.TO_RUN, State.WAITING) for status in prepared.statuses)
    statuses, record = _run_steps(console, prepared, keep_going=keep_going) if busy else _note_run(prepared)
    remade = {status.step.id for status in statuses if status.state is State.DONE}
    delivered = deliver(prepared.plan, prepared.store, out_dir, remade)
    if output is OutputFormat.JSON:
        console.json(_summarize(prepared, statuses, record, delivered, status_rows(statuses)))
        return
    _print_outcome(console, statuses, delivered, time.monotonic() - began, busy=busy)


def _note_run(prepared: Prepared) -> tuple[list[StepStatus], RunRecord | None]:
    """Nothing to run: only a plan that is not that of the latest run is put on record, for `trtx status`."""
    from trtx.plan.record import create_run

    known = prepared.plan == prepared.previous
    return prepared.statuses, None if known else create_run(Path.cwd(), prepared.plan)


def _run_steps(console: Console, prepared: Prepared, *, keep_going: bool) -> tuple[list[StepStatus], RunRecord]:
    """Run the plan as a new run; raises the error of the first failed step."""
    from trtx.plan.execute import Execution
    from trtx.plan.record import create_run
    from trtx.runners.base import find_runner

    prepared.store.prepare()
    prepared.store.clean_staging()
    record = create_run(Path.cwd(), prepared.plan)
    runner = find_runner("local").make_runner(prepared.max_parallel)
    with _observer(console, prepared.statuses) as observer, _sigterm_as_interrupt():
        execution = Execution(
            prepared.plan, prepared.store, runner, record, prepared.environ, observer, keep_going=keep_going
        )
        try:
            execution.run(prepared.statuses)
        except KeyboardInterrupt:
            record.add_event("stopped")
            raise Interrupted(
                "the run was stopped",
                why="finished steps are in the cache",
                fix="run the same `trtx apply` again to continue",
            ) from None
    statuses = list(execution.statuses.values())
    if execution.errors:
        _report_failures(console, record, execution.errors, statuses)
    return statuses, record


def _report_failures(
    console: Console, record: RunRecord, errors: dict[str, TrtxError], statuses: list[StepStatus]
) -> None:
    """Show the table and raise one error for all failed steps; its exit code is theirs when they agree, else 1."""
    from trtx.cli.display import print_table

    print_table(console, statuses)
    (first, cause), *others = errors.items()
    for step, error in others:
        console.error(f"error: {step} failed: {error.what}")
    kind = type(cause) if len({type(error) for error in errors.values()}) == 1 else StepFailed
    log = record.log(first, record.attempts(first)[-1])
    fix = f"{cause.fix}\n  log: {log}" if cause.fix else f"trtx logs {first}\n  log: {log}"
    raise kind(f"{first} failed: {cause.what}", why=cause.why, fix=fix)


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


def _summarize(
    prepared: Prepared,
    statuses: list[StepStatus],
    record: RunRecord | None,
    delivered: list[Delivered],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "schema": "trtx.apply/v1",
        "run": record.id if record else None,
        "recipe": prepared.plan.recipe,
        "status": rows,
        "packages": {entry.cell: str(entry.folder) for entry in delivered},
    }


def _print_outcome(
    console: Console, statuses: list[StepStatus], delivered: list[Delivered], seconds: float, *, busy: bool
) -> None:
    from trtx.cli.display import format_duration, print_table

    print_table(console, statuses)
    what = "done" if busy else "nothing to run: every step is in the cache"
    console.say(f"{what}, {format_duration(seconds)}", style="ok")
    for entry in delivered:
        console.say(f"  {entry.cell}: {entry.folder}")
    if delivered:
        console.say(f"next: trtx serve {delivered[0].engine}")
