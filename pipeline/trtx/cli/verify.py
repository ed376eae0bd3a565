"""`trtx verify`: whether a deployment or an engine is what it was, and runs here; whether a rebuild gives the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from trtx.cli.options import (
    OfflineOption,
    OutputFormat,
    OutputOption,
    SetOption,
    UnsetOption,
    make_overrides,
)
from trtx.console import Console
from trtx.errors import UsageProblem, VerificationFailed
from trtx.recipe.overrides import Overrides

SCHEMA = "trtx.verify/v1"


def command(
    context: typer.Context,
    argument: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|RECIPE",
            help="A deployment folder, or an engine folder of either backend. With --rebuild a recipe file; "
            "recipe.yaml:h100/fp8 or recipe.yaml:'*/fp8' selects cells.",
        ),
    ],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Compare files with their digests; do not look at this machine.")
    ] = False,
    strict_gpu: Annotated[
        bool, typer.Option("--strict-gpu", help="Ask for the model of GPU it was built on, not for its kind alone.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Build the recipe's cached engines once more in scratch space, and compare."),
    ] = False,
    keep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--keep", metavar="FOLDER", help="With --rebuild: keep what was built, and its logs, there."),
    ] = None,
    settings: SetOption = None,
    removals: UnsetOption = None,
    offline: OfflineOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Compare a deployment or an engine with its digests, and with this machine; leaves with 8 when it does not pass.

    Inside a container it says whether the engine runs there: the release, its TensorRT, the GPUs.

    With --rebuild, every engine of a recipe that is in the cache is built once more on this machine, from the same
    inputs and with the choices that its build measured, and the cache stays as it is. The verdict is bit-identical; or
    same choices, where bytes differ; or equal within a bound, where choices do, and both engines' logits are close and
    their greedy tokens the same; or differs, which leaves with 8. What cannot be rebuilt here leaves with 6.
    """
    console: Console = context.obj
    if rebuild:
        _refuse({"--files-only": files_only, "--strict-gpu": strict_gpu}, "looks at a folder", "with --rebuild")
        _rebuild(console, argument, make_overrides(settings, removals), keep, output, offline=offline)
        return
    given = {"--keep": keep is not None, "--set": settings, "--unset": removals, "--offline": offline}
    _refuse(given, "is about a rebuild", "without --rebuild")
    _verify_folder(console, Path(argument), output, files_only=files_only, strict_gpu=strict_gpu)


def _refuse(given: Mapping[str, object], why: str, when: str) -> None:
    """Raises UsageProblem for an option that is of the other kind of verification."""
    for option, value in given.items():
        if value:
            raise UsageProblem(f"{option} cannot be used {when}", why=f"it {why}", fix="see: trtx verify --help")


def _verify_folder(console: Console, folder: Path, output: OutputFormat, *, files_only: bool, strict_gpu: bool) -> None:
    from trtx.backends.verify import verify_folder

    verdict = verify_folder(folder, files_only=files_only, strict_gpu=strict_gpu)
    if output is OutputFormat.JSON:
        console.json({"schema": SCHEMA, "passed": verdict.is_good, **asdict(verdict)})
    else:
        files = "damaged" if verdict.damage else "as they were made" if verdict.files else "all there; no digests"
        here = "not looked at" if files_only else "does not run here" if verdict.misfits else "runs here"
        rows = [("made for", verdict.made_for), ("files", files), ("this machine", here)]
        console.table((f"{verdict.kind} of {verdict.backend}", verdict.folder), rows)
    for problem in (*verdict.damage, *verdict.misfits):
        console.error(f"error: {problem}")
    if not verdict.is_good:
        raise typer.Exit(VerificationFailed.exit_code)


def _rebuild(
    console: Console, recipe: str, overrides: Overrides, keep: Path | None, output: OutputFormat, *, offline: bool
) -> None:
    from trtx.cli.prepare import Request
    from trtx.cli.rebuild import decide_exit_code, rebuild, tell_failures, tell_verdicts, to_json

    reports = rebuild(console, Request(recipe, overrides, offline=offline), keep)
    if output is OutputFormat.JSON:
        console.json(to_json(recipe, reports))
    else:
        tell_verdicts(console, reports)
    tell_failures(console, reports)
    if code := decide_exit_code(reports):
        raise typer.Exit(code)
