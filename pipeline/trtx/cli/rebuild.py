"""`trtx verify RECIPE --rebuild`: builds the engines of a recipe once more, and says how they compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtx.backends.rebuilt import Compared, Comparison, Outputs, worst
from trtx.cli.prepare import Request, prepare
from trtx.console import Console
from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.plan.rebuild import find_obstacle, list_builds, run_rebuild
from trtx.plan.why import Entries
from trtx.stages.job import Failure
from trtx.stages.rebuild_report import Report

SCHEMA = "trtx.rebuild/v1"
# How much of what differs a person is shown; JSON has all of it.
MAX_LINES = 8


def rebuild(console: Console, request: Request, keep: Path | None) -> list[Report]:
    """Build every engine of a recipe that is in the cache once more, one after another.

    What was built is kept in the folder `keep`, by step. Raises UsageProblem for a recipe that builds nothing.
    """
    prepared = prepare(console, request)
    builds = list_builds(prepared.statuses)
    if not builds:
        raise UsageProblem("the recipe builds no engine", fix="select other cells")
    if keep is not None and keep.exists():
        raise UsageProblem(f"{keep} exists already", why="what is kept there must be of this call", fix="name another")
    entries = Entries(prepared.store.manifests("build"))
    reports = []
    with _scratch(keep) as folder:
        for status in builds:
            step = status.step
            obstacle = find_obstacle(prepared.plan, status, prepared.statuses, entries, prepared.lock)
            if obstacle is not None or status.manifest is None:
                failure = Failure.of(obstacle or EnvironmentProblem(f"{step.id} has no entry"))
                reports.append(Report(step=step.id, key=step.key, failure=failure))
                continue
            console.say(f"rebuilding {step.id}")
            reports.append(run_rebuild(prepared.plan, step, status.manifest, folder, prepared.environ))
    return reports


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="trtx-rebuild-") as folder:
        yield Path(folder)


def decide_exit_code(reports: Sequence[Report]) -> int:
    """Of a failed verification where an engine differs, else of the first that could not be rebuilt, else 0."""
    if worst(report.comparison.verdict for report in reports if report.comparison) == "differs":
        return VerificationFailed.exit_code
    return next((report.failure.error().exit_code for report in reports if report.failure), 0)


def to_json(recipe: str, reports: Sequence[Report]) -> dict[str, Any]:
    """The reports for tools."""
    return {
        "schema": SCHEMA,
        "recipe": recipe,
        "passed": decide_exit_code(reports) == 0,
        "engines": [
            {
                "step": report.step,
                "key": report.key,
                "verdict": report.comparison.verdict if report.comparison else None,
                **_describe(report.comparison),
                "seconds": report.seconds,
                "error": report.failure.error().to_json() if report.failure else None,
            }
            for report in reports
        ],
    }


def _describe(found: Comparison | None) -> dict[str, Any]:
    return found.model_dump(mode="json") if found else dict.fromkeys(Comparison.model_fields)


def tell_verdicts(console: Console, reports: Sequence[Report]) -> None:
    """Print the table, and below it what differs."""
    rows, styles = [], []
    for report in reports:
        found = report.comparison
        verdict = found.verdict if found else "not rebuilt"
        styles.append("error" if verdict == "differs" else "warning" if not found else "ok")
        parts = (found.files, found.choices, found.records) if found else (None, None, None)
        rows.append((report.step, verdict, *map(_count, parts), _describe_outputs(found.outputs if found else None)))
    console.table(("engine", "verdict", "files", "choices", "records", "outputs"), rows, styles=styles)
    for report in reports:
        if report.comparison is not None:
            _tell_differences(console, report.step, report.comparison)


def tell_failures(console: Console, reports: Sequence[Report]) -> None:
    """Print why engines were not rebuilt."""
    for report in reports:
        if report.failure is not None:
            console.error(report.failure.error().render())


def _tell_differences(console: Console, step: str, found: Comparison) -> None:
    for title, part in (("file", found.files), ("choice", found.choices), ("record", found.records)):
        different = part.different if part else ()
        for text in different[:MAX_LINES]:
            console.say(f"{step}: {title} differs: {text}")
        if len(different) > MAX_LINES:
            console.say(f"{step}: and {len(different) - MAX_LINES} more; -o json has all of them")


def _count(part: Compared | None) -> str:
    if part is None:
        return "not told"
    return f"{part.count - len(part.different)} of {part.count} equal" if part.count else "none"


def _describe_outputs(outputs: Outputs | None) -> str:
    if outputs is None:
        return "not asked"
    wrong = f", {outputs.mismatches} other tokens" if outputs.mismatches else ""
    return (
        f"logits differ by {outputs.largest:.3g} at most; distance {outputs.distance:.3g} of {outputs.bound:.3g}{wrong}"
    )
