"""`trtx logs`: what steps printed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from trtx.cli.options import OutputFormat, OutputOption, RunOption
from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.plan.record import RunRecord

SCHEMA = "trtx.logs/v1"
# How often a followed log is looked at.
FOLLOW_S = 0.2


def command(
    context: typer.Context,
    step: Annotated[
        str, typer.Argument(help="Step id, such as build/cpu/fp32, or 'build/*' for several; `trtx status` lists them.")
    ],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing until the step ends.")] = False,
    run: RunOption = None,
    attempt: Annotated[
        Optional[int], typer.Option("--attempt", min=1, help="Which attempt; the last when left out.")  # noqa: UP045
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Print a step's log on stdout, of the latest run that ran it; with -f as it is written.

    Lines of several steps begin with the step they are of.
    """
    from trtx.plan.record import find_run, find_run_of

    if follow and output is OutputFormat.JSON:
        raise UsageProblem("-f prints a text that grows, which is not one JSON document", fix="leave -f or -o json out")
    record = find_run(Path.cwd(), run)
    steps = _find_steps(record, step)
    refresh = _make_refresh(record)
    refresh()
    alone = len(steps) == 1 and step == steps[0]
    if run is None and alone and not record.has_ahead():
        record = find_run_of(Path.cwd(), step) or record
    if alone:
        _wait_for_start(record, step, refresh, follow=follow)
    logs = [_open(record, name, attempt if alone else None) for name in steps]
    if output is OutputFormat.JSON:
        context.obj.json(_describe_logs(record, logs, alone=alone))
    else:
        _print_logs(record, logs, refresh, follow=follow, alone=alone)


def _make_refresh(record: RunRecord) -> Callable[[], None]:
    """What brings logs from a cluster behind ssh here, unless who drives the run does it."""
    if not record.submissions() or record.is_driven_here():
        return lambda: None
    from trtx.plan.cluster_view import make_refresh

    return make_refresh(record.load_plan(), record, os.environ)


def _find_steps(record: RunRecord, pattern: str) -> list[str]:
    """The steps that a pattern names. Raises UsageProblem with the nearest id when there is none."""
    plan = record.load_plan()
    found = [step.id for step in plan.steps if fnmatchcase(step.id, pattern)]
    return found or [plan.step(pattern).id]


def _wait_for_start(record: RunRecord, step_id: str, refresh: Callable[[], None], *, follow: bool) -> None:
    while not record.attempts(step_id):
        if not (follow and record.has_ahead()):
            raise UsageProblem(
                f"{step_id} did not start in run {record.id}",
                why="it was cached, or waits for another step",
                fix="`trtx status` says which",
            )
        time.sleep(FOLLOW_S)
        refresh()


@dataclass
class Log:
    """One step's log as it is printed; `attempt` is None until there is one, `fixed` when it was asked for."""

    step: str
    attempt: int | None
    fixed: bool
    position: int = 0
    rest: bytes = b""


def _open(record: RunRecord, step_id: str, attempt: int | None) -> Log:
    known = record.attempts(step_id)
    if attempt is not None and attempt not in known:
        raise UsageProblem(f"{step_id} has no attempt {attempt}", fix=f"attempts: {', '.join(map(str, known))}")
    return Log(step_id, attempt or (known[-1] if known else None), attempt is not None)


def _describe_logs(record: RunRecord, logs: Sequence[Log], *, alone: bool) -> dict[str, Any]:
    described = [_describe_log(record, log.step, log.attempt) for log in logs if log.attempt is not None]
    return {"schema": SCHEMA, "run": record.id, **(described[0] if alone else {"logs": described})}


def _describe_log(record: RunRecord, step_id: str, attempt: int) -> dict[str, Any]:
    path = record.log(step_id, attempt)
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    ended = _has_ended(record, step_id, attempt)
    return {"step": step_id, "attempt": attempt, "path": str(path), "ended": ended, "lines": text.splitlines()}


def _print_logs(
    record: RunRecord, logs: Sequence[Log], refresh: Callable[[], None], *, follow: bool, alone: bool
) -> None:
    width = max(len(log.step) for log in logs)
    while True:
        refresh()
        # Asked before the files are read: what is written until a step ends is printed.
        goes_on = record.has_ahead()
        going = [log for log in logs if not _is_over(record, log, goes_on=goes_on)]
        for log in logs:
            _print_new(record, log, "" if alone else f"{log.step.ljust(width)} | ")
        if not (follow and going):
            break
        time.sleep(FOLLOW_S)
    for log in logs:
        if log.rest:
            print(f"{log.step.ljust(width)} | {log.rest.decode(errors='replace')}", flush=True)


def _is_over(record: RunRecord, log: Log, *, goes_on: bool) -> bool:
    """Whether nothing will be added: its attempt ended and no other followed, or nothing is under way any more."""
    from trtx.stages.job import read_result

    if not goes_on:
        return True
    if log.attempt is None or not _has_ended(record, log.step, log.attempt):
        return log.attempt is None and _is_settled(record, log.step)
    if log.fixed or not record.submissions() or _is_settled(record, log.step):
        return True
    # No attempt follows one that ended well, whether or not anybody follows the run.
    result = read_result(record.attempt_folder(log.step, log.attempt))
    return result is not None and result.failure is None


def _is_settled(record: RunRecord, step_id: str) -> bool:
    """Whether no attempt will follow: the step was made or given up, or it is not to run."""
    events = [event["event"] for event in record.events() if event.get("step") == step_id]
    if not events:
        return True
    return events[-1] in ("done", "failed", "blocked", "cancelled", "interrupted")


def _has_ended(record: RunRecord, step_id: str, attempt: int) -> bool:
    return record.has_end(step_id, attempt) or any(
        event["event"] in ("done", "failed", "interrupted", "cancelled") and event.get("attempt") == attempt
        for event in record.events()
        if event.get("step") == step_id
    )


def _print_new(record: RunRecord, log: Log, prefix: str) -> None:
    """Copy what was added to stdout: whole lines behind a prefix, or the bytes as they are without one."""
    latest = record.attempts(log.step)
    if not log.fixed and latest and latest[-1] != log.attempt:
        log.attempt, log.position, log.rest = latest[-1], 0, b""
    if log.attempt is None:
        return
    path = record.log(log.step, log.attempt)
    if not path.exists():
        return
    with path.open("rb") as stream:
        stream.seek(log.position)
        while chunk := stream.read(1 << 16):
            if not prefix:
                sys.stdout.buffer.write(chunk)
                continue
            *lines, log.rest = (log.rest + chunk).split(b"\n")
            for line in lines:
                sys.stdout.buffer.write(prefix.encode() + line + b"\n")
        sys.stdout.flush()
        log.position = stream.tell()
