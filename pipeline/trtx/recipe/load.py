"""A recipe file → a Recipe and the place of each of its values, or all that is wrong with it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from trtx.recipe import problems
from trtx.recipe.cells import Cell, make_cells
from trtx.recipe.origins import Origin, origin_of
from trtx.recipe.overrides import NO_OVERRIDES, Overrides
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.schema import SCHEMA, Recipe
from trtx.recipe.texts import read_text as read_text
from trtx.recipe.tree import Tree, Unreadable, dotted, read_tree
from trtx.recipe.unavailable import find_unavailable

# Keys of a file that a resolved recipe does not have.
COMPOSING = frozenset({"extends", "vars", "matrix"})


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe with its source. `warnings` are problems that stop nothing.

    With a matrix it is the recipe of the first point, and all points are in `points`. `made_cells` are the cells of a
    matrix, or of the one point that this is; `bases` the files that the recipe extends.
    """

    recipe: Recipe
    path: Path
    text: str
    tree: Tree = field(repr=False)
    warnings: tuple[Problem, ...] = ()
    made_points: tuple[LoadedRecipe, ...] = field(default=(), repr=False)
    made_cells: tuple[Cell, ...] | None = field(default=None, repr=False)
    bases: tuple[Path, ...] = ()

    @property
    def points(self) -> tuple[LoadedRecipe, ...]:
        """The recipe at every point of its matrix; itself without one."""
        return self.made_points or (self,)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read, the recipe first."""
        return (self.path, *self.bases)

    def cells(self) -> list[Cell]:
        """Every engine to build, in the order of the file, each once; of one point, those that belong to it."""
        return make_cells(self.recipe) if self.made_cells is None else list(self.made_cells)

    def point_of(self, cell: Cell) -> LoadedRecipe:
        """The point that a cell belongs to: what its problems are reported with."""
        return self._points_by_recipe[id(cell.recipe)]

    @functools.cached_property
    def built(self) -> dict[str, tuple[str, ...]]:
        """The variants that this point builds, by target: what checks look at, since a matrix may exclude the rest."""
        built: dict[str, tuple[str, ...]] = {}
        for cell in self.cells():
            built[cell.target] = (*built.get(cell.target, ()), cell.variant)
        return built

    @functools.cached_property
    def _points_by_recipe(self) -> dict[int, LoadedRecipe]:
        return {id(point.recipe): point for point in self.points}

    def problem(self, path: problems.Path, what: str, *, why: str = "", fix: str = "", at_key: bool = False) -> Problem:
        """A problem about the value (or key) at a path, or the nearest around it when the file has none there."""
        return self.tree.problem_at(path, what, why=why, fix=fix, at_key=at_key)

    def origin(self, path: problems.Path) -> Origin:
        """Where the value at a path comes from; a setting that nobody states has its default."""
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        removed = next((self.tree.removed[prefix] for prefix in prefixes if prefix in self.tree.removed), "")
        return origin_of(self.tree.places.get(path), removed)

    def refuse(self, path: problems.Path, what: str, *, why: str = "", fix: str = "") -> NoReturn:
        """Raise RecipeInvalid with one problem."""
        raise RecipeInvalid([self.problem(path, what, why=why, fix=fix)])


def load_recipe(
    path: Path, overrides: Overrides = NO_OVERRIDES, environ: Mapping[str, str] | None = None
) -> LoadedRecipe:
    """Read and validate a recipe; the checks that need more than the recipe are in trtx.recipe.checks.

    `environ` is what ${env.NAME} reads.

    Raises RecipeInvalid with all problems of the file, UsageProblem when there is no such file.
    """
    return parse_recipe(path, read_text(path), overrides, environ)


def parse_recipe(
    path: Path, text: str, overrides: Overrides = NO_OVERRIDES, environ: Mapping[str, str] | None = None
) -> LoadedRecipe:
    """As load_recipe, for text that was already read."""
    try:
        tree = read_tree(str(path), text)
        if _is_composed(tree.data, text) or overrides != NO_OVERRIDES:
            return _compose(path, text, tree, overrides, os.environ if environ is None else environ)
    except Unreadable as error:
        raise RecipeInvalid([error.problem]) from None
    recipe, found = validate(tree)
    if recipe is None:
        raise RecipeInvalid([*tree.problems, *found])
    return LoadedRecipe(recipe, path, text, tree)


def _is_composed(data: dict[str, Any], text: str) -> bool:
    """Whether a file is more than one plain recipe. A backslash may be part of an escaped `${`."""
    return not COMPOSING.isdisjoint(data) or "${" in text or "\\" in text


def _compose(path: Path, text: str, tree: Tree, overrides: Overrides, environ: Mapping[str, str]) -> LoadedRecipe:
    """Files → merge → --set and --unset → matrix → variables → validation."""
    from trtx.recipe.expand import Point, expand
    from trtx.recipe.extend import extend
    from trtx.recipe.interpolate import Resolver
    from trtx.recipe.override import override
    from trtx.recipe.variables import check_variables, find_unused

    merged, files = extend(tree, path)
    changed = override(merged, overrides)
    found = [*changed.problems, *check_variables(changed)]
    resolvers: list[Resolver] = []

    def make_point(raw: Tree) -> Point:
        resolvers.append(Resolver(raw, environ))
        resolved = resolvers[-1].resolve()
        recipe, wrong = validate(resolved)
        return Point(resolved, recipe, [*resolved.problems, *wrong])

    made = expand(changed, make_point)
    warnings = made.warnings
    if resolvers:
        unused = find_unused(changed, set().union(*(resolver.used for resolver in resolvers)), tree.source)
        found += resolvers[0].rehearse() if unused else ()
        found += [problem for problem in unused if problem.severity == "error"]
        warnings = [*warnings, *(problem for problem in unused if problem.severity == "warning")]
    if found or made.problems:
        raise RecipeInvalid(list(dict.fromkeys([*found, *made.problems])))
    points = [
        LoadedRecipe(point.recipe, path, text, point.tree, made_cells=tuple(point.cells), bases=files[1:])
        for point in made.points
        if point.recipe
    ]
    return replace(points[0], warnings=tuple(warnings), made_points=tuple(points), made_cells=tuple(made.cells))


def validate(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """What a resolved tree says as a Recipe, or None and what is wrong with it; says nothing twice."""
    found: list[Problem] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(tree.data)
    except ValidationError as error:
        found = _explain_all(error, tree)
    found += _refuse_unavailable(tree)
    return (None if found or tree.problems else recipe), found


def _explain_all(error: ValidationError, tree: Tree) -> list[Problem]:
    from trtx.recipe.messages import FILE, explain

    # A value that aliases repeat is wrong once, where it is written; the first place it stands at speaks for all.
    found: dict[object, Problem] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic counts valid items only, and the invalid ones are reported themselves
        message = explain(detail, tree.data, tree.hidden)
        if tree.is_broken(message.path):
            continue
        problem = tree.problem_at(message.path, message.what, why=message.why, fix=message.fix, at_key=message.at_key)
        if message.path == ("schema",):
            # Another version of the language: what else is wrong by this one's rules is noise.
            return [replace(problem, fix=problem.fix.replace(FILE, problem.file))]
        found.setdefault((problem.file, problem.mark, problem.note, detail["type"], detail["loc"][-1:]), problem)
    return list(found.values())


def _refuse_unavailable(tree: Tree) -> list[Problem]:
    if not isinstance(tree.data, dict) or tree.data.get("schema") != SCHEMA:
        return []
    found: list[Problem] = []
    for path, value, fix in find_unavailable(tree.data):
        shown = _show(value)
        what = f"{dotted(path)}{shown} is not available in this version"
        found.append(tree.problem_at(path, what, fix=fix, at_key=not shown))
    return found


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return ""
    return f": {str(value).lower() if isinstance(value, bool) else value}"
