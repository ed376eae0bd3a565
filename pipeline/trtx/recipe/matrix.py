"""`matrix`: its axes and exclusions as read from a recipe; which cells an axis changes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trtx.errors import did_you_mean
from trtx.recipe.cells import Choice
from trtx.recipe.graft import paths_in
from trtx.recipe.lookup import value_at, wants_names
from trtx.recipe.parts import NAME_PATTERN
from trtx.recipe.problems import Mark, Path, Place, Problem
from trtx.recipe.setting import BadPath, Step, check_known, read_path, settle
from trtx.recipe.template import BadTemplate, Reference, read_template
from trtx.recipe.tree import Tree, dotted

# What an exclusion may name beside axes.
CELL_KEYS = ("target", "variant")
TOO_EARLY = "cells are named before variables are replaced"
FIXED = frozenset({"schema", "name", "extends", "matrix"})


@dataclass(frozen=True)
class Axis:
    """One setting that varies. `values` are the places of its values in the tree, by name.

    `steps` are the places of the parts of its path; `touched` the paths of the recipe that it can change.
    """

    name: str
    path: Path
    values: dict[str, Path]
    steps: tuple[Place, ...]
    touched: tuple[Path, ...] = ()

    @property
    def sections(self) -> frozenset[str]:
        return frozenset(str(path[0]) for path in self.touched)

    def choice(self, value: str) -> Choice:
        return Choice(self.name, value, self.sections)

    def affects(self, target: str, variant: str) -> bool:
        """Whether a cell can differ between the values of this axis."""
        return any(
            len(path) == 1
            or path[0] not in ("targets", "quantization")
            or path[:2] in (("targets", target), ("quantization", variant))
            for path in self.touched
        )

    @property
    def is_structural(self) -> bool:
        """Whether it can change which cells there are."""
        return any(
            path[0] in ("targets", "quantization")
            and (len(path) < 3 or path[:1] + path[2:3] == ("targets", "quantization"))
            for path in self.touched
        )


@dataclass(frozen=True)
class Exclusion:
    """An entry of `exclude`: names of values by axis, and globs for target and variant."""

    path: Path
    values: dict[str, str] = field(default_factory=dict)
    target: str = "*"
    variant: str = "*"

    def covers(self, target: str, variant: str, values: dict[str, str]) -> bool:
        return (
            fnmatch.fnmatchcase(target, self.target)
            and fnmatch.fnmatchcase(variant, self.variant)
            and all(values.get(axis) == value for axis, value in self.values.items())
        )


def read_matrix(tree: Tree) -> tuple[list[Axis], list[Exclusion]]:
    """The axes and exclusions of a tree. What is wrong with them is added to its problems."""
    path: Path = ("matrix",)
    if tree.is_broken(path) or _is_malformed(tree):
        return [], []
    given = tree.data["matrix"]
    axes = [axis for name in given["axes"] if (axis := _read_axis(tree, name)) is not None]
    if len(axes) == len(given["axes"]):
        axes = [_with_touched(tree, axis, axes) for axis in axes]
        _refuse_overlaps(tree, axes)
    # None stands for what could not be read, which is reported.
    return axes, list(_read_exclusions(tree, given.get("exclude") or [], axes))


def slug(value: Any) -> str:
    """The name of a value that is named after itself: `0.9`, `2gib`, `hf-meta-llama-llama-3.1-8b`."""
    text = str(value).lower()
    return re.sub(r"[^a-z0-9._-]+", "-", text).strip("-._")


def _is_malformed(tree: Tree) -> bool:
    """Report what does not have the shape of a matrix; values are looked at axis by axis."""
    from pydantic import ValidationError

    from trtx.recipe.document import Matrix
    from trtx.recipe.messages import explain

    found = False
    try:
        Matrix.model_validate(tree.data["matrix"])
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            detail["loc"] = ("matrix", *detail["loc"])
            if detail["loc"][1:4:2] == ("axes", "values") and detail["type"] != "missing":
                continue
            found = True
            message = explain(detail, tree.data)
            is_counted = detail["type"] == "too_short" and detail["input"]
            if not tree.is_broken(message.path) and not is_counted:
                tree.problems.append(
                    tree.problem_at(message.path, message.what, why=message.why, fix=message.fix, at_key=message.at_key)
                )
    return found


def _read_axis(tree: Tree, name: str) -> Axis | None:
    place: Path = ("matrix", "axes", name)
    if name in CELL_KEYS:
        fix = "give the axis another name"
        tree.problems.append(tree.problem_at(place, f"an axis cannot be named '{name}'", fix=fix, at_key=True))
    values = _read_values(tree, (*place, "values"))
    text, stands = tree.data["matrix"]["axes"][name]["path"], tree.place((*place, "path"))
    try:
        steps, end = read_path(text)
        if end < len(text):
            raise BadPath("a path has no value", end, len(text) - end, fix="values stand under `values`")
        path = _check_path(steps, tree.data)
    except BadPath as error:
        mark = _within(stands, text, error.col, error.width)
        tree.problems.append(
            stands.source.problem(mark, str(error), why=error.why, fix=error.fix, path=(*place, "path"))
        )
        return None
    marks = [_within(stands, text, step.col, step.width) for step in steps]
    return Axis(name, path, values, tuple(Place(mark, mark, stands.source, kind="matrix") for mark in marks))


def _within(place: Place, text: str, col: int, width: int) -> Mark:
    """A part of a text that stands at a place, with or without quotes."""
    at = place.source.line(place.value).find(text, place.value.col - 1)
    return place.value if at < 0 else Mark(place.value.line, at + col + 1, width)


def _check_path(steps: list[Step], data: Any) -> Path:
    """The path of an axis in the recipe. Raises BadPath where the recipe or the language has nothing."""
    first = steps[0]
    if first.part in FIXED:
        why = "it is the same for all points of a matrix"
        raise BadPath(f"'{first.part}' cannot vary", first.col, first.width, why=why, fix="vary another setting")
    path = settle(steps, data)
    if first.part == "vars":
        if len(steps) == 1:
            raise BadPath("the name of a variable is missing", first.col, first.width, fix="write vars.NAME")
        return path
    check_known(steps, path, data)
    for index in range(1, len(steps)):
        around = value_at(path[:index], data)
        if wants_names(path[:index], data) and path[index] not in (around or {}):
            step, section = steps[index], dotted(path[:index])
            fix = did_you_mean(str(step.part), around or {})
            raise BadPath(f"there is no '{step.part}' in {section}", step.col, step.width, fix=fix)
    return path


def _read_values(tree: Tree, place: Path) -> dict[str, Path]:
    """The places of an axis's values, by name."""
    given = value_at(place, tree.data)
    if tree.is_broken(place):
        return {}
    if isinstance(given, str) and "${" in given:
        fix = "write the values here; each of them may be a reference, under a name of its own"
        tree.problems.append(tree.problem_at(place, "values cannot be a reference", why=TOO_EARLY, fix=fix))
    elif not isinstance(given, list | dict) or not given:
        what = f"{dotted(place)} must be a list, or a mapping from names to values, and not empty"
        tree.problems.append(tree.problem_at(place, what, fix="write values: [8, 32]"))
    elif isinstance(given, dict):
        return {name: (*place, name) for name in given if _check_name(tree, (*place, name), name)}
    else:
        return _name_values(tree, place, given)
    return {}


def _name_values(tree: Tree, place: Path, given: list[Any]) -> dict[str, Path]:
    values: dict[str, Path] = {}
    for index, value in enumerate(given):
        path = (*place, index)
        name, what, why = slug(value), "", ""
        if tree.is_broken(path):
            continue
        if isinstance(value, list | dict):
            what, why = "this value has no name", "lists and mappings are not named after themselves"
        elif "${" in str(value):
            what, why = "this value has no name", TOO_EARLY
        elif not re.fullmatch(NAME_PATTERN, name):
            what, why = "this value has no name", "its text makes none: letters and digits, at most 63 characters"
        elif name in values:
            first = value_at(values[name], tree.data)
            what, why = f"two values have the name '{name}'", f"{first} makes the same name"
        if what:
            fix = f"name the values: {{{name if name not in values and len(name) < 40 else 'a'}: …}}"
            tree.problems.append(tree.problem_at(path, what, why=why, fix=fix))
        else:
            values[name] = path
    return values


def _check_name(tree: Tree, path: Path, name: str) -> bool:
    if re.fullmatch(NAME_PATTERN, name):
        return not tree.is_broken(path)
    from trtx.recipe.messages import name_rule

    why, fix = name_rule(name)
    tree.problems.append(tree.problem_at(path, f"'{name}' cannot be a name", why=why, fix=fix, at_key=True))
    return False


def _refuse_overlaps(tree: Tree, axes: Sequence[Axis]) -> None:
    for number, axis in enumerate(axes):
        for other in axes[:number]:
            if overlap(axis.path, other.path):
                what = (
                    f"the axes '{other.name}' and '{axis.name}' both vary {dotted(max(axis.path, other.path, key=len))}"
                )
                fix = "make one axis of them, with a mapping of names to values"
                tree.problems.append(tree.problem_at(("matrix", "axes", axis.name, "path"), what, fix=fix))


def _with_touched(tree: Tree, axis: Axis, axes: Sequence[Axis]) -> Axis:
    """The axis with the paths that it changes: its own, or those that use its variable."""
    if axis.path[0] != "vars":
        return replace(axis, touched=(axis.path,))
    uses = list(_find_uses(tree, axes))
    changed = {axis.path}
    while more := {
        path
        for path, used in uses
        if path[0] == "vars" and path not in changed and any(overlap(one, other) for one in used for other in changed)
    }:
        changed |= more
    touched = tuple(
        path for path, used in uses if path[0] != "vars" and any(overlap(a, b) for a in used for b in changed)
    )
    if not touched:
        name = dotted(axis.path)
        known = {str(one[1]) for _, used in uses for one in used}
        fix = did_you_mean(str(axis.path[1]), known) if known else f"use it: ${{{name}}}"
        what = f"the axis '{axis.name}' changes nothing"
        path: Path = ("matrix", "axes", axis.name, "path")
        tree.problems.append(tree.problem_at(path, what, why=f"no setting uses ${{{name}}}", fix=fix))
    return replace(axis, touched=touched)


def overlap(one: Path, other: Path) -> bool:
    """Whether one of two paths is the other, or inside it."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _find_uses(tree: Tree, axes: Sequence[Axis]) -> Iterator[tuple[Path, list[Path]]]:
    """Every path whose text names variables, values of axes included, and the paths of these variables."""
    places = [(path, path) for path in paths_in(tree.data, ()) if path and path[0] != "matrix"]
    for axis in axes:
        for value in axis.values.values():
            inner = paths_in(value_at(value, tree.data), value)
            places += [(path, (*axis.path, *path[len(value) :])) for path in inner]
    for stands, means in places:
        text = value_at(stands, tree.data)
        if isinstance(text, str) and "${" in text and (used := list(_variables_in(text))):
            yield means, used


def _variables_in(text: str) -> Iterator[Path]:
    try:
        pieces = read_template(text)
    except BadTemplate:  # Reported where it is replaced.
        return
    for piece in pieces:
        if isinstance(piece, Reference) and piece.kind == "vars":
            yield ("vars", *piece.names)
        elif isinstance(piece, Reference) and piece.default is not None:
            yield from _variables_in(piece.default)


def _read_exclusions(tree: Tree, given: Iterable[dict[str, Any]], axes: Sequence[Axis]) -> Iterator[Exclusion]:
    known = {axis.name: axis for axis in axes}
    for index, entry in enumerate(given):
        path: Path = ("matrix", "exclude", index)
        values: dict[str, str] = {}
        globs = dict.fromkeys(CELL_KEYS, "*")
        is_whole = True
        for key, value in entry.items():
            if tree.is_broken((*path, key)):
                is_whole = False
            elif key in CELL_KEYS and isinstance(value, str):
                globs[key] = value
            elif key in known and (name := _name_of_value(tree, known[key], value)) is not None:
                values[key] = name
            else:
                tree.problems.append(_bad_exclusion(tree, (*path, key), key, value, known))
        # A part of an entry would exclude more than the whole.
        if is_whole:
            yield Exclusion(path, values, globs["target"], globs["variant"])


def _name_of_value(tree: Tree, axis: Axis, value: Any) -> str | None:
    if isinstance(value, str) and value in axis.values:
        return value
    same = (
        name
        for name, path in axis.values.items()
        if (known := value_at(path, tree.data)) == value and type(known) is type(value)
    )
    return next(same, None)


def _bad_exclusion(tree: Tree, path: Path, key: str, value: Any, axes: dict[str, Axis]) -> Problem:
    if key in CELL_KEYS:
        return tree.problem_at(path, f"{key} must be a text", fix="write the name of one, or a glob such as 'h*'")
    if key not in axes:
        fix = did_you_mean(key, [*axes, *CELL_KEYS])
        return tree.problem_at(path, f"there is no axis '{key}'", fix=fix, at_key=True)
    what = f"the axis '{key}' has no such value"
    return tree.problem_at(path, what, fix=did_you_mean(str(value), axes[key].values))
