"""`trtx schema`: the recipe language for editors."""

from __future__ import annotations

import typer

from trtx.console import Console


def command(context: typer.Context) -> None:
    """Print the JSON Schema (2020-12) of recipes on stdout.

    Editors with yaml-language-server complete and check a recipe whose first line is
    "# yaml-language-server: $schema=FILE".
    """
    from trtx.hardware.gpus import GPUS
    from trtx.recipe.describe import make_json_schema

    console: Console = context.obj
    console.json(make_json_schema(GPUS))
