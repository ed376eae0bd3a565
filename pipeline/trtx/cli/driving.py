"""Driving a run: what `apply` and `attach` do once they know which, and how they say what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trtx.console import Console
from trtx.errors import Interrupted, StepFailed, TrtxError

if TYPE_CHECKING:
    from trtx.cli.prepare import Ready
    from trtx.plan.board import Observer
    from trtx.plan.cluster_run import ClusterRun
    from trtx.plan.deliver import Delivered
    from trtx.plan.execute import Execution
    from trtx.plan.record import RunRecord
    from trtx.plan.survey import StepStatus

SCHEMA = "trtx.apply/v1"
GO_ON = "`trtx attach` goes on following, `trtx status --watch` looks, `trtx cancel` ends them"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `errors` by step id; `record` is None when there was nothing to run and nothing new to note.

    `detached`: jobs go on, and nothing follows them.
    """

    ready: Ready
    statuses: list[StepStatus]
    record: RunRecord | None
    errors: dict[str, TrtxError]
    seconds: float
    busy: bool
    delivered: tuple[Delivered, ...] = ()
    detached: bool = False
    logs: dict[str, Path] | None = None

    def to_json(self, schema: str = SCHEMA) -> dict[str, Any]:
        from trtx.cli.prepare import status_rows

        return {
            "schema": schema,
            "run": self.record.id if self.record else None,
            "recipe": self.ready.plan.recipe,
            "detached": self.detached,
            "status": status_rows(self.statuses),
            "remotes": self.ready.remotes.to_json() if self.ready.remotes else [],
            "packages": {entry.cell: str(entry.folder) for entry in self.delivered},
        }


def run_steps(console: Console, ready: Ready, *, keep_going: bool, detach: bool = False) -> Outcome:
    """Run the plan as a new run; without anything to run, only a plan that is new here is put on record."""
    from trtx.plan.record import create_run
    from trtx.plan.survey import OPEN

    began = time.monotonic()
    if not any(status.state in OPEN for status in ready.statuses):
        known = ready.plan == ready.previous
        record = None if known else create_run(Path.cwd(), ready.plan)
        return Outcome(ready, ready.statuses, record, {}, time.monotonic() - began, busy=False)
    from trtx.plan.execute import Execution
    from trtx.runners.base import find_runner

    ready.store.prepare()
    ready.store.clean_staging()
    record = create_run(Path.cwd(), ready.plan)
    write_request(record, ready)
    runner = find_runner("local").make_runner(ready.plan.max_parallel)
    with observing(console, ready.statuses) as observer, _sigterm_as_interrupt():
        execution = Execution(ready.plan, ready.store, runner, record, ready.environ, observer, keep_going=keep_going)
        execution.remotes, execution.detach = ready.remotes, detach
        execution.cluster = _make_cluster(ready, record)
        with _interruptions(execution):
            execution.run(ready.statuses)
    return _conclude(console, ready, execution, began)


def adopt_run(console: Console, ready: Ready, record: RunRecord, *, detach: bool = False) -> Outcome:
    """Follow the jobs of a run to their end; with `detach` only see to it that all are submitted."""
    from trtx.plan.execute import Execution
    from trtx.runners.base import find_runner

    began = time.monotonic()
    runner = find_runner("local").make_runner(1)
    with observing(console, ready.statuses) as observer, _sigterm_as_interrupt():
        execution = Execution(ready.plan, ready.store, runner, record, ready.environ, observer)
        execution.remotes, execution.detach = ready.remotes, detach
        execution.cluster = _make_cluster(ready, record)
        with _interruptions(execution):
            execution.adopt(ready.statuses)
    return _conclude(console, ready, execution, began)


def write_request(record: RunRecord, ready: Ready) -> None:
    """Keep what the run was asked for, so that whoever attaches to it can keep the recipe's lock."""
    from trtx.cli.prepare import Prepared

    if isinstance(ready, Prepared):
        request = ready.request
        record.write_request(
            {
                "argument": request.argument,
                "set": list(request.overrides.set),
                "unset": list(request.overrides.unset),
                "until": request.until.value if request.until else None,
                "max_parallel": request.max_parallel,
                "locked": request.locked,
                "runner": request.runner,
            }
        )


def _make_cluster(ready: Ready, record: RunRecord) -> ClusterRun | None:
    from trtx.plan.cluster import runs_on_cluster

    if not any(runs_on_cluster(ready.plan, step) for step in ready.plan.steps):
        return None
    from trtx.plan.cluster_run import ClusterRun

    return ClusterRun(ready.plan, record, ready.environ)


@contextmanager
def _interruptions(execution: Execution) -> Iterator[None]:
    """Ctrl-C ends what runs here; jobs go on, and the message says how to find them again."""
    try:
        yield
    except KeyboardInterrupt:
        if execution.is_submitted:
            execution.record.add_event("detached")
            raise Interrupted(
                f"run {execution.record.id} is not followed any more",
                why="its jobs go on",
                fix=GO_ON,
            ) from None
        execution.record.add_event("stopped")
        raise Interrupted(
            "the run was stopped",
            why="finished steps are in the cache",
            fix="run the same command again to continue",
        ) from None


def _conclude(console: Console, ready: Ready, execution: Execution, began: float) -> Outcome:
    for warning in execution.warnings:
        console.warn(warning)
    statuses = list(execution.statuses.values())
    cluster = execution.cluster
    logs = {step: cluster.log_of(step) for step in execution.errors} if cluster else {}
    detached = execution.detach and execution.is_submitted
    if detached:
        execution.record.add_event("detached")
    return Outcome(
        ready,
        statuses,
        execution.record,
        execution.errors,
        time.monotonic() - began,
        busy=True,
        detached=detached,
        logs={step: log for step, log in logs.items() if log is not None},
    )


def deliver_packages(outcome: Outcome, out_dir: Path) -> Outcome:
    """Put the packages in place."""
    from trtx.plan.deliver import deliver
    from trtx.plan.survey import State

    remade = {status.step.id for status in outcome.statuses if status.state is State.DONE}
    ready = outcome.ready
    return replace(outcome, delivered=tuple(deliver(ready.plan, ready.store, out_dir, remade)))


def make_error(console: Console, outcome: Outcome, schema: str = SCHEMA) -> TrtxError:
    """One error for all failed steps; its exit code is theirs when they agree, else 1."""
    assert outcome.record is not None  # noqa: S101  Steps that failed ran in a run.
    (first, cause), *others = outcome.errors.items()
    for step, error in others:
        console.error(f"error: {step} failed: {error.what}")
    kind = type(cause) if len({type(error) for error in outcome.errors.values()}) == 1 else StepFailed
    fix = cause.fix or f"trtx logs {first}"
    attempts = outcome.record.attempts(first)
    log = (outcome.logs or {}).get(first) or (outcome.record.log(first, attempts[-1]) if attempts else None)
    error = kind(f"{first} failed: {cause.what}", why=cause.why, fix=f"{fix}\n  log: {log}" if log else fix)
    error.document = outcome.to_json(schema) | {"error": error.to_json()}
    return error


@contextmanager
def observing(console: Console, statuses: list[StepStatus]) -> Iterator[Observer]:
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


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The steps, one line on the whole, and what to do next."""
    from trtx.cli.display import print_table

    print_table(console, outcome.statuses)
    what, style = _describe(outcome)
    console.say(what, style=style)
    for entry in outcome.delivered:
        console.say(f"  {entry.cell}: {entry.folder}")
    if outcome.detached:
        console.say("next: trtx status --watch, trtx logs -f STEP, trtx attach, trtx cancel")
    if outcome.delivered:
        console.say(f"next: {outcome.delivered[0].start}")


def publish_outcome(console: Console, outcome: Outcome, *, printed: bool) -> None:
    """The same for GitHub; `printed`: on stdout as well."""
    from trtx.cli.github import make_summary, publish_summary

    folders = [f"{entry.cell}: {entry.folder}" for entry in outcome.delivered]
    title = f"trtx apply {outcome.ready.plan.recipe}"
    publish_summary(console, make_summary(title, outcome.statuses, _describe(outcome)[0], folders), printed=printed)


def _describe(outcome: Outcome) -> tuple[str, str]:
    """The whole in one line, and its style."""
    from trtx.cli.display import format_duration

    took = format_duration(outcome.seconds)
    if outcome.errors:
        return f"{len(outcome.errors)} step{'s' * (len(outcome.errors) > 1)} failed, {took}", "error"
    if outcome.detached:
        return f"submitted, {took}; {_count_jobs(outcome)}", "ok"
    done = "done" if outcome.busy else "nothing to run: every step is in the cache"
    return f"{done}, {took}", "ok"


def _count_jobs(outcome: Outcome) -> str:
    """`jobs 12, 13 and 14 of cluster`, arrays by their id."""
    arrays: dict[str, list[str]] = {}
    for status in outcome.statuses:
        if status.job is not None and status.job.id:
            found = arrays.setdefault(status.job.runner, [])
            array = status.job.id.partition("_")[0]
            found += [array] if array not in found else []
    return "; ".join(f"job arrays of {runner}: {', '.join(jobs)}" for runner, jobs in arrays.items())
