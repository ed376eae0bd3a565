"""`trtx schema`: the recipe language for editors, and its reference page for people."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Optional

import typer

from trtx.console import Console

SCHEMA = "trtx.reference/v1"


class SchemaFormat(StrEnum):
    """A schema is JSON; the reference page is Markdown unless JSON is asked for."""

    JSON = "json"


def command(
    context: typer.Context,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print the reference page of every setting instead, in Markdown.")
    ] = False,
    output: Annotated[
        Optional[SchemaFormat],  # noqa: UP045
        typer.Option("-o", "--output", help="How to print the result; a schema always is JSON."),
    ] = None,
) -> None:
    """Print the JSON Schema (2020-12) of recipes on stdout.

    Editors with yaml-language-server complete and check a recipe whose first line is
    "# yaml-language-server: $schema=FILE".
    """
    from trtx.hardware.gpus import GPUS

    console: Console = context.obj
    if not reference:
        from trtx.recipe.describe import make_json_schema

        console.json(make_json_schema(GPUS))
        return
    from trtx.backends.tensorrt_llm.presets import describe_presets
    from trtx.plan.effects import reason_of, stages_of
    from trtx.recipe.reference import make_reference

    devices = dict.fromkeys(device.name for device in GPUS.values())
    page = make_reference(devices, lambda path: (stages_of(path), reason_of(path)), describe_presets())
    if output is SchemaFormat.JSON:
        console.json({"schema": SCHEMA, "markdown": page})
    else:
        print(page, file=console.out, end="", flush=True)
