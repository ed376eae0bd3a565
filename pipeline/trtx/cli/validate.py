"""`trtx validate`: everything that is wrong with a recipe, without planning it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from trtx.cli.options import (
    FormatOption,
    OutputFormat,
    OutputOption,
    RecipeArgument,
    SetOption,
    TextFormat,
    UnsetOption,
    make_overrides,
    spell,
)
from trtx.console import Console

if TYPE_CHECKING:
    from trtx.recipe.load import LoadedRecipe
    from trtx.recipe.problems import Problem

SCHEMA = "trtx.validate/v1"
# Sources whose config.json is at hand.
LOCAL_SCHEMES = ("demo://", "file://", "random://")


def command(
    context: typer.Context,
    recipe: RecipeArgument,
    set_: SetOption = None,
    unset: UnsetOption = None,
    output: OutputOption = OutputFormat.TABLE,
    text_format: FormatOption = TextFormat.TEXT,
) -> None:
    """Check a recipe, at every point of its matrix, and show all its problems at once, each with its place.

    Uses no network: a model from elsewhere is checked against the recipe (heads, layers, positions) by plan.
    """
    from trtx.cli.github import annotate_problem, annotated
    from trtx.hardware import support
    from trtx.plan.site import site_runners
    from trtx.plan.steps import split_selection
    from trtx.recipe.cells import select_cells
    from trtx.recipe.checks import read_recipe
    from trtx.recipe.problems import RecipeInvalid

    console: Console = context.obj
    as_json = output is OutputFormat.JSON
    path, glob = split_selection(recipe)
    answer: dict[str, Any] = {"schema": SCHEMA, "recipe": str(path)}
    overrides = make_overrides(set_, unset)
    try:
        with annotated(console, text_format):
            loaded = read_recipe(path, support, overrides, os.environ, site_runners(os.environ))
            cells = [cell.name for cell in select_cells(loaded.cells(), glob)]
            warnings = [*loaded.warnings, *_check_models(loaded, os.environ)]
    except RecipeInvalid as error:
        if not as_json:
            raise
        problems = [problem.to_json() for problem in error.problems]
        console.json(answer | {"valid": False, "cells": [], "problems": problems})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        problems = [problem.to_json() for problem in warnings]
        console.json(answer | {"valid": True, "cells": cells, "problems": problems})
        return
    for warning in warnings:
        console.warn(warning.render())
        if text_format is TextFormat.GITHUB:
            console.command(annotate_problem(warning))
    count = f"{len(cells)} engine{'s' if len(cells) != 1 else ''}"
    shown = ", ".join(cells[:20]) + (f" and {len(cells) - 20} more" if len(cells) > 20 else "")
    console.say(f"{console.paint('ok:', 'ok')} {recipe} describes {count}: {shown}")
    console.say(f"next: trtx plan {spell(recipe, overrides)}")


def _check_models(loaded: LoadedRecipe, environ: Mapping[str, str]) -> list[Problem]:
    """Check every point against the shape of its model where that is at hand, and against its release.

    Returns warnings. Raises RecipeInvalid.
    """
    from trtx.plan.check_tensorrt_llm import find_problems
    from trtx.plan.releases import is_tensorrt, load_releases
    from trtx.plan.resolve import PinnedModel, model_name, resolve_model
    from trtx.recipe.check_model import find_misfits
    from trtx.recipe.problems import RecipeInvalid

    cells = loaded.cells()
    compiled = {model_name(cell.recipe.model) for cell in cells if not is_tensorrt(cell)}
    found: list[Problem] = []
    models: dict[Any, PinnedModel] = {}
    for point in loaded.points:
        model = point.recipe.model
        name = model_name(model)
        if model.source.startswith(LOCAL_SCHEMES):
            if name not in models:
                models[name] = resolve_model(model, environ, compiled=name in compiled)
            found += find_misfits(point, models[name].shape) if name in compiled else ()
    releases = load_releases(loaded, cells)
    if releases:
        configs = {name: pinned.source.config for name, pinned in models.items()}
        found += find_problems(loaded, cells, releases, configs)
    found = list(dict.fromkeys(found))
    if any(problem.severity == "error" for problem in found):
        raise RecipeInvalid(found)
    return found
