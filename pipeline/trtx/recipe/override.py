"""`--set` and `--unset`: changes to a recipe before its matrix and its variables are looked at.

Removals come first, so that `--unset targets --set targets.a.gpu=cpu` replaces a section.
"""

from __future__ import annotations

from collections.abc import Sequence

from trtx.recipe.graft import adopt, fork, put, take
from trtx.recipe.lookup import wants_text
from trtx.recipe.overrides import Overrides
from trtx.recipe.problems import Mark, Path, Place, Source
from trtx.recipe.setting import BadPath, Step, read_path, settle
from trtx.recipe.tree import Tree, Unreadable, read_value

# What only a file can say, and why.
FIXED = {
    "extends": "files are read and merged before options are looked at",
    "schema": "it says which language the file is written in",
}


def override(tree: Tree, overrides: Overrides) -> Tree:
    """The tree with all changes made; what is wrong with one of them is in its problems."""
    changed = fork(tree)
    removals = Source("--unset", overrides.unset, is_option=True)
    for number, text in enumerate(overrides.unset, 1):
        _attempt(changed, removals, number, text, is_removal=True)
    settings = Source("--set", overrides.set, is_option=True)
    for number, text in enumerate(overrides.set, 1):
        _attempt(changed, settings, number, text, is_removal=False)
    return changed


def _attempt(tree: Tree, source: Source, number: int, text: str, *, is_removal: bool) -> None:
    try:
        if is_removal:
            _unset(tree, source, number, text)
        else:
            _set(tree, source, number, text)
    except BadPath as error:
        mark = Mark(number, error.col + 1, error.width)
        tree.problems.append(source.problem(mark, str(error), why=error.why, fix=error.fix))
    except Unreadable as error:
        tree.problems.append(error.problem)


def _unset(tree: Tree, source: Source, number: int, text: str) -> None:
    steps, end = read_path(text)
    if end < len(text):
        raise BadPath("--unset takes a path without a value", end, len(text) - end, fix=f"write --unset {text[:end]}")
    _check_changeable(steps)
    path = settle(steps, tree.data, must_exist=True)
    take(tree, path, f"{source.at(Mark(number, 1))} takes away what the recipe says")


def _set(tree: Tree, source: Source, number: int, text: str) -> None:
    steps, end = read_path(text)
    if end == len(text):
        raise BadPath(
            "there is no value", max(0, end - 1), fix=f"write --set {text}=VALUE; --unset takes a setting away"
        )
    _check_changeable(steps)
    path = settle(steps, tree.data)
    given = _read(tree, source, Mark(number, end + 2, max(1, len(text) - end - 1)), text[end + 1 :], path)
    marks = [Mark(number, step.col + 1, step.width) for step in steps]
    put(tree, path, given.data, tuple(Place(mark, mark, source, kind="set") for mark in marks))
    adopt(tree, given, given.data, path, path, kind="set")
    place = tree.places[path]
    tree.places[path] = place._replace(key=marks[-1])
    tree.problems += given.problems


def _read(tree: Tree, source: Source, start: Mark, text: str, path: Path) -> Tree:
    """The value of an option as the setting wants it: a text as it stands there, anything else as YAML."""
    if wants_text(path, tree.data):
        return Tree(source, text, {path: Place(start, None, source)})
    if not text.strip() or text.strip() in ("~", "null", "Null", "NULL"):
        name = source.line(start)[: start.col - 2]
        raise BadPath("there is no value", start.col - 2, fix=f"write {name}=VALUE, or --unset {name}")
    return read_value(source, start, text, path)


def _check_changeable(steps: Sequence[Step]) -> None:
    first = steps[0]
    if why := FIXED.get(str(first.part)):
        raise BadPath(f"{first.part} cannot be changed", first.col, first.width, why=why, fix="change the file")
