"""`--format github`: a Markdown summary for pull requests, and problems as annotations of lines.

Formats: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trtx.cli.options import TextFormat
from trtx.console import Console
from trtx.errors import TrtxError
from trtx.files import disk_errors

if TYPE_CHECKING:
    from trtx.plan.survey import StepStatus
    from trtx.recipe.problems import Problem

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
# A step's summary may have 1 MiB.
MAX_SUMMARY_BYTES = 1_000_000
COLUMNS = ("step", "state", "time", "key", "reason")


@contextmanager
def annotated(console: Console, text_format: TextFormat) -> Iterator[None]:
    """Print every error that leaves the block as workflow commands too, when they are asked for."""
    from trtx.recipe.problems import RecipeInvalid

    try:
        yield
    except TrtxError as error:
        if text_format is TextFormat.GITHUB:
            problems = error.problems if isinstance(error, RecipeInvalid) else ()
            for problem in problems:
                console.command(annotate_problem(problem))
            if not problems:
                console.command(annotate_error(error))
        raise


def annotate_problem(problem: Problem) -> str:
    """The workflow command that puts a problem at its line of the pull request."""
    text = "\n".join(filter(None, [problem.what, problem.why and f"why: {problem.why}", problem.fix]))
    if problem.file.startswith("--"):  # It is in an option and not in a file.
        return _command(problem.severity, text, title=problem.file)
    return _command(problem.severity, text, file=problem.file, line=str(problem.line), col=str(problem.col))


def annotate_error(error: TrtxError) -> str:
    """The workflow command of an error that has no line."""
    text = "\n".join(filter(None, [error.what, error.why and f"why: {error.why}", error.fix]))
    return _command("error", text, title="trtx")


def publish_summary(
    console: Console, markdown: str, *, printed: bool = True, environ: Mapping[str, str] = os.environ
) -> None:
    """Append a summary to the file that GitHub shows, when it names one; `printed`: on stdout as well.

    Raises EnvironmentProblem when that file cannot be written.
    """
    if printed:
        print(markdown, file=console.out, flush=True)
    if name := environ.get(SUMMARY_VARIABLE):
        path = Path(name)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(markdown + "\n")


def make_summary(title: str, statuses: Iterable[StepStatus], outcome: str, lines: Iterable[str] = ()) -> str:
    """Markdown: what ran or would run in a table, everything else folded below it.

    `outcome` is the sentence under the title; `lines` come after it as a list.
    """
    from trtx.plan.survey import State

    shown = list(statuses)
    quiet = (State.CACHED, State.NOT_NEEDED)
    active = [status for status in shown if status.state not in quiet]
    resting = [status for status in shown if status.state in quiet]
    parts = [f"## {_escape(title)}", "", f"**{_escape(outcome)}**"]
    if points := [f"- {_escape(line)}" for line in lines]:
        parts += ["", *points]
    if active:
        parts += ["", *_table(active)]
    if resting:
        parts += ["", f"<details><summary>{len(resting)} more steps</summary>", "", *_table(resting), "", "</details>"]
    return "\n".join(parts) + "\n"


def _table(statuses: Iterable[StepStatus]) -> list[str]:
    from trtx.cli.display import make_row

    rows = [make_row(status) for status in statuses]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---|---|"]
    size = 0
    for number, (step, state, took, key, reason) in enumerate(rows):
        line = f"| `{step}` | {state} | {took} | `{key}` | {_escape(reason)} |"
        size += len(line.encode())
        if size > MAX_SUMMARY_BYTES // 2:
            return [*lines, f"| … | {len(rows) - number} more | | | |"]
        lines.append(line)
    return lines


def _escape(text: str) -> str:
    """Plain text as Markdown in one line."""
    for char in "\\`*_|<>[]":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())


def _command(name: str, text: str, **properties: str) -> str:
    fields = ",".join(f"{key}={_escape_property(value)}" for key, value in properties.items())
    return f"::{name} {fields}::{_escape_data(text)}"


def _escape_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")
