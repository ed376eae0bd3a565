"""Recipes of older versions of the language, rewritten in the newest: comments and layout survive.

A migration changes the text, step by step, and says independently what the data must be afterwards. A result that says
anything else, loses a comment, or is no valid recipe is refused, so that no file is ever made worse.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from trtx.errors import nearest
from trtx.recipe import problems
from trtx.recipe.edits import Edit, Layout, apply_edits, comments
from trtx.recipe.load import parse_recipe
from trtx.recipe.problems import RecipeInvalid
from trtx.recipe.schema import OLDER, SCHEMA
from trtx.recipe.tree import Tree, Unreadable, read_tree

# Version → the module that leads from it to the next one.
MIGRATIONS = {"trtx/v0": "trtx.recipe.migrate_v0"}
VERSIONS = (*OLDER, SCHEMA)

Step = Callable[[Layout], Iterator[Edit]]


class Unfit(Exception):
    """A file is not what its version says; `path` is the place of it."""

    def __init__(self, path: problems.Path, what: str) -> None:
        super().__init__(what)
        self.path = path


@dataclass(frozen=True)
class Migrated:
    """A recipe text in the newest version; `changes` say in words what was done, and are empty when nothing was."""

    path: Path
    version: str
    before: str = field(repr=False)
    after: str = field(repr=False)
    changes: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        return self.version == SCHEMA

    def diff(self) -> str:
        """The unified diff of the change."""
        name = str(self.path)
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            f"{name} ({self.version})",
            f"{name} ({SCHEMA})",
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def migrate_text(path: Path, text: str) -> Migrated:
    """Bring a recipe's text to the newest version of the language; unchanged if it is there already.

    Raises RecipeInvalid for a text that cannot be read, that is of an unknown version, or whose result would not be
    a valid recipe; nothing is written.
    """
    tree = _read(path, text)
    version = first = _version(tree)
    after, changes = text, []
    while version != SCHEMA:
        module = importlib.import_module(MIGRATIONS[version])
        expected = _convert(module, _read(path, after))
        try:
            after, made = _rewrite(module, after)
            is_right = read_tree(str(path), after).data == expected and comments(after) == comments(text)
        except (yaml.YAMLError, Unreadable, ValueError):  # An edit left no YAML, or two met in one place.
            is_right = False
        if not is_right:
            _refuse(path, text, module)
        changes += made
        version = VERSIONS[VERSIONS.index(version) + 1]
    if version != first:
        _validate(path, after)
    return Migrated(path, first, text, after, tuple(changes))


def _read(path: Path, text: str) -> Tree:
    try:
        tree = read_tree(str(path), text)
    except Unreadable as error:
        raise RecipeInvalid([error.problem]) from None
    if tree.problems:
        raise RecipeInvalid(tree.problems)
    return tree


def _version(tree: Tree) -> str:
    version = tree.data.get("schema")
    if version in VERSIONS:
        return str(version)
    if "schema" not in tree.data:
        fix = f"begin with `schema: {VERSIONS[0]}`, or the version that the file is written in"
        raise RecipeInvalid([tree.problem(tree.place(()).value, "the key 'schema' is missing", fix=fix)])
    match = nearest(str(version), VERSIONS)
    why = f"this trtx reads {SCHEMA} and migrates {', '.join(OLDER)}"
    fix = f"did you mean '{match}'? A newer version needs a newer trtx" if match else f"known: {', '.join(VERSIONS)}"
    what = f"a recipe of schema {version} cannot be migrated"
    raise RecipeInvalid([tree.problem(tree.place(("schema",)).value, what, why=why, fix=fix, path=("schema",))])


def _convert(module: Any, tree: Tree) -> Any:
    try:
        return module.convert(tree.data)
    except Unfit as error:
        place = tree.place(error.path)
        why = f"the file says that it is {tree.data['schema']}"
        raise RecipeInvalid([tree.problem(place.value, str(error), why=why, path=error.path)]) from None


def _rewrite(module: Any, text: str) -> tuple[str, list[str]]:
    changes = []
    for step in module.STEPS:
        after = apply_edits(text, step(Layout(text)))
        if after != text and step in module.CHANGES:
            changes.append(module.CHANGES[step])
        text = after
    return text, changes


def _refuse(path: Path, text: str, module: Any) -> NoReturn:
    tree = read_tree(str(path), text)
    why = "anchors, merges or an unusual layout tie together what has to be taken apart"
    table = [line.split("|")[1:3] for line in module.__doc__.splitlines() if line.startswith("| `")]
    fix = "edit it by hand:" + "".join(f"\n       {old.strip()} → {new.strip()}" for old, new in table)
    what = "this file cannot be rewritten with its comments and layout"
    raise RecipeInvalid([tree.problem(tree.place(("schema",)).value, what, why=why, fix=fix)])


def _validate(path: Path, text: str) -> None:
    """Raise RecipeInvalid if a result is no valid recipe; its problems are those of a file that was not written."""
    try:
        parse_recipe(path, text)
    except RecipeInvalid as error:
        name = f"{path} as {SCHEMA} (not written)"
        raise RecipeInvalid([replace(problem, file=name) for problem in error.problems]) from None
