"""`trtx validate`: everything that is wrong with a recipe, without planning it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console

SCHEMA = "trtx.validate/v1"
# Sources whose config.json is at hand.
LOCAL_SCHEMES = ("demo://", "file://")


def command(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Check a recipe and show all its problems at once, each with its place in the file.

    Uses no network: a model from elsewhere is checked against the recipe (heads, layers, positions) by plan.
    """
    from trtx.hardware import support
    from trtx.recipe.check_model import check_model
    from trtx.recipe.checks import read_recipe
    from trtx.recipe.problems import RecipeInvalid

    console: Console = context.obj
    as_json = output is OutputFormat.JSON
    try:
        loaded = read_recipe(recipe, support)
        if loaded.recipe.model.source.startswith(LOCAL_SCHEMES):
            from trtx.plan.resolve import resolve_model

            check_model(loaded, resolve_model(loaded.recipe.model, os.environ).shape)
    except RecipeInvalid as error:
        if not as_json:
            raise
        problems = [problem.to_json() for problem in error.problems]
        console.json({"schema": SCHEMA, "recipe": str(recipe), "valid": False, "cells": [], "problems": problems})
        raise typer.Exit(error.exit_code) from None
    cells = [cell.name for cell in loaded.cells()]
    if as_json:
        problems = [problem.to_json() for problem in loaded.warnings]
        console.json({"schema": SCHEMA, "recipe": str(recipe), "valid": True, "cells": cells, "problems": problems})
        return
    for warning in loaded.warnings:
        console.warn(warning.render())
    count = f"{len(cells)} engine{'s' if len(cells) != 1 else ''}"
    console.say(f"{console.paint('ok:', 'ok')} {recipe} describes {count}: {', '.join(cells)}")
    console.say(f"next: trtx plan {recipe}")
