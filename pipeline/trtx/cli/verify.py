"""`trtx verify`: whether a deployment or an engine is what it was, and runs here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console

SCHEMA = "trtx.verify/v1"


def command(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A deployment folder, or an engine folder of either backend.")
    ],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Compare files with their digests; do not look at this machine.")
    ] = False,
    strict_gpu: Annotated[
        bool, typer.Option("--strict-gpu", help="Ask for the model of GPU it was built on, not for its kind alone.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Compare a deployment or an engine with its digests, and with this machine; leaves with 8 when it does not pass.

    Inside a container it says whether the engine runs there: the release, its TensorRT, the GPUs.
    """
    from trtx.backends.verify import verify_folder
    from trtx.errors import VerificationFailed

    console: Console = context.obj
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
