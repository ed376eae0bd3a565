"""`trtx logs`: what a step printed."""

from __future__ import annotations

import sys
import time
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
    step: Annotated[str, typer.Argument(help="Step id, such as build/cpu/fp32; `trtx status` lists them.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing until the step ends.")] = False,
    run: RunOption = None,
    attempt: Annotated[
        Optional[int], typer.Option("--attempt", min=1, help="Which attempt; the last when left out.")  # noqa: UP045
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Print a step's log on stdout, of the latest run that ran it; with -f as it is written."""
    from trtx.plan.record import find_run, find_run_of

    if follow and output is OutputFormat.JSON:
        raise UsageProblem("-f prints a text that grows, which is not one JSON document", fix="leave -f or -o json out")
    record = find_run(Path.cwd(), run)
    planned = record.load_plan().step(step)
    if run is None and not record.is_driven():
        record = find_run_of(Path.cwd(), planned.id) or record
    while not record.attempts(planned.id):
        if not (follow and record.is_driven()):
            raise UsageProblem(
                f"{planned.id} did not start in run {record.id}",
                why="it was cached, or waits for another step",
                fix="`trtx status` says which",
            )
        time.sleep(FOLLOW_S)
    number = attempt or record.attempts(planned.id)[-1]
    if number not in record.attempts(planned.id):
        known = ", ".join(map(str, record.attempts(planned.id)))
        raise UsageProblem(f"{planned.id} has no attempt {number}", fix=f"attempts: {known}")
    if output is OutputFormat.JSON:
        context.obj.json(_describe_log(record, planned.id, number))
    else:
        _print_log(record, planned.id, number, follow=follow)


def _describe_log(record: RunRecord, step_id: str, attempt: int) -> dict[str, Any]:
    path = record.log(step_id, attempt)
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    ended = _has_ended(record, step_id, attempt)
    place = {"run": record.id, "step": step_id, "attempt": attempt, "path": str(path), "ended": ended}
    return {"schema": SCHEMA, **place, "lines": text.splitlines()}


def _print_log(record: RunRecord, step_id: str, attempt: int, *, follow: bool) -> None:
    path, position = record.log(step_id, attempt), 0
    while True:
        ended = _has_ended(record, step_id, attempt) or not record.is_driven()
        position = _print_from(path, position)
        if ended or not follow:
            return
        time.sleep(FOLLOW_S)


def _has_ended(record: RunRecord, step_id: str, attempt: int) -> bool:
    return any(
        event["event"] in ("done", "failed", "interrupted") and event["attempt"] == attempt
        for event in record.events()
        if event.get("step") == step_id
    )


def _print_from(path: Path, position: int) -> int:
    """Copy what was added since `position` to stdout; returns the new position in bytes."""
    if not path.exists():
        return position
    with path.open("rb") as stream:
        stream.seek(position)
        while chunk := stream.read(1 << 16):
            sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
        return stream.tell()
