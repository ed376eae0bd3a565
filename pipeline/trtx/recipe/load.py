"""A recipe file → a Recipe and the place of each of its values, or all that is wrong with it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from trtx.errors import UsageProblem, nearest
from trtx.recipe import problems
from trtx.recipe.cells import Cell, make_cells
from trtx.recipe.origins import Origin, origin_of
from trtx.recipe.overrides import NO_OVERRIDES, Overrides
from trtx.recipe.problems import Mark, Problem, RecipeInvalid
from trtx.recipe.schema import SCHEMA, Recipe
from trtx.recipe.tree import Tree, Unreadable, dotted, read_tree
from trtx.recipe.unavailable import find_unavailable


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe with its source. `warnings` are problems that stop nothing."""

    recipe: Recipe
    path: Path
    text: str
    tree: Tree = field(repr=False)
    warnings: tuple[Problem, ...] = ()

    @property
    def points(self) -> tuple[LoadedRecipe, ...]:
        """The recipe at every point of its matrix; itself without one."""
        return (self,)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read, the recipe first."""
        return (self.path,)

    def cells(self) -> list[Cell]:
        """Every engine to build, in the order of the file, each once."""
        return make_cells(self.recipe)

    def point_of(self, cell: Cell) -> LoadedRecipe:
        """The point that a cell belongs to: what its problems are reported with."""
        return next(point for point in self.points if point.recipe is cell.recipe)

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
    except Unreadable as error:
        raise RecipeInvalid([error.problem]) from None
    recipe, found = validate(tree)
    if recipe is None:
        raise RecipeInvalid([*tree.problems, *found])
    return LoadedRecipe(recipe, path, text, tree)


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


def read_text(path: Path) -> str:
    """The text of a recipe file. Raises UsageProblem when it cannot be read, RecipeInvalid when it is not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _unreadable_file(path, error) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        mark = Mark(before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1)
        is_utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        why = "it looks like UTF-16" if is_utf16 else f"byte 0x{raw[error.start]:02X} is not part of a UTF-8 character"
        problem = Problem(str(path), Mark(1, 1) if is_utf16 else mark, "the file is not UTF-8", why, "save it as UTF-8")
        raise RecipeInvalid([problem]) from None


def _unreadable_file(path: Path, error: OSError) -> UsageProblem:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        names = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        match = nearest(path.name, names)
        fix = f"did you mean '{path.with_name(match)}'?" if match else f"`trtx init {path}` writes one to start from"
        return UsageProblem(f"there is no recipe {path}", fix=fix)
    if error.errno == errno.EISDIR:
        names = sorted(item.name for item in path.glob("*.y*ml"))
        fix = f"it holds {', '.join(names[:5])}" if names else "give a YAML file"
        return UsageProblem(f"{path} is a folder, not a recipe", fix=fix)
    return UsageProblem(f"the recipe {path} cannot be read", why=error.strerror or "")


def _explain_all(error: ValidationError, tree: Tree) -> list[Problem]:
    from trtx.recipe.messages import explain

    found: list[Problem] = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic counts valid items only, and the invalid ones are reported themselves
        message = explain(detail, tree.data)
        if tree.is_broken(message.path):
            continue
        problem = tree.problem_at(message.path, message.what, why=message.why, fix=message.fix, at_key=message.at_key)
        if message.path == ("schema",):
            # Another version of the language: what else is wrong by this one's rules is noise.
            return [problem]
        found.append(problem)
    return found


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
