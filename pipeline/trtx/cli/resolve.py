"""`trtx resolve`: a recipe as trtx understands it, with where every value comes from."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtx.cli.options import RecipeArgument, SetOption, UnsetOption, make_overrides
from trtx.console import Console

if TYPE_CHECKING:
    from trtx.recipe.load import LoadedRecipe

SCHEMA = "trtx.resolve/v1"


class ResolvedFormat(StrEnum):
    """Both go to stdout: one YAML document for every point of a matrix, or one JSON document."""

    YAML = "yaml"
    JSON = "json"


def command(
    context: typer.Context,
    recipe: RecipeArgument,
    set_: SetOption = None,
    unset: UnsetOption = None,
    origins: Annotated[
        bool, typer.Option("--origins", help="Say for every value which file and line, option or default it is from.")
    ] = False,
    output: Annotated[ResolvedFormat, typer.Option("-o", "--output", help="How to print.")] = ResolvedFormat.YAML,
) -> None:
    """Print the recipe with its bases merged, its variables replaced and all defaults filled in.

    What is printed is a recipe again. A recipe with a matrix is printed once for every point that selected cells
    belong to, each time with their names.
    """
    from trtx.hardware import support
    from trtx.plan.site import site_runners
    from trtx.plan.steps import split_selection
    from trtx.recipe.cells import select_cells
    from trtx.recipe.checks import read_recipe
    from trtx.recipe.resolved import leaf_origins, resolve_data
    from trtx.recipe.tree import dotted

    console: Console = context.obj
    path, glob = split_selection(recipe)
    loaded = read_recipe(path, support, make_overrides(set_, unset), os.environ, site_runners(os.environ))
    for warning in loaded.warnings:
        console.warn(warning.render())
    cells: dict[int, list[str]] = {}
    for cell in select_cells(loaded.cells(), glob):
        cells.setdefault(id(cell.recipe), []).append(cell.name)
    points = [(point, cells[id(point.recipe)]) for point in loaded.points if id(point.recipe) in cells]
    if output is ResolvedFormat.YAML:
        documents = [_document(point, names if len(loaded.points) > 1 else [], origins) for point, names in points]
        print("---\n".join(documents), end="", file=console.out)
        return
    listed: list[dict[str, Any]] = []
    for point, names in points:
        data = resolve_data(point)
        entry: dict[str, Any] = {"cells": names, "recipe": data}
        if origins:
            entry["origins"] = {dotted(place): text for place, text in leaf_origins(point, data).items()}
        listed.append(entry)
    console.json({"schema": SCHEMA, "recipes": listed})


def _document(point: LoadedRecipe, cells: list[str], origins: bool) -> str:
    """One point as YAML; `cells` are named before it."""
    from trtx.recipe.resolved import leaf_origins, resolve_data, to_yaml, unstated_defaults

    data = resolve_data(point)
    text = to_yaml(data, leaf_origins(point, data), unstated_defaults(point)) if origins else to_yaml(data)
    return (f"# cells: {', '.join(cells)}\n" if cells else "") + text
