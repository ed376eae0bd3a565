"""`vars` as a whole: their names, and those that nothing uses."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from trtx.errors import did_you_mean
from trtx.recipe.messages import name_rule
from trtx.recipe.parts import NAME_PATTERN
from trtx.recipe.problems import Path, Problem, Source
from trtx.recipe.tree import Tree


def check_variables(tree: Tree) -> list[Problem]:
    """What is wrong with the section `vars` itself."""
    given = tree.data.get("vars", {})
    if tree.is_broken(("vars",)):
        return []
    if not isinstance(given, dict):
        tree.broken.add(("vars",))
        return [
            tree.problem_at(("vars",), "vars must be a mapping", fix="write `name: value` lines under it, indented")
        ]
    found: list[Problem] = []
    for name in given:
        if not re.fullmatch(NAME_PATTERN, name):
            why, fix = name_rule(name)
            found.append(tree.problem_at(("vars", name), f"'{name}' cannot be a name", why=why, fix=fix, at_key=True))
    return found


def find_unused(tree: Tree, used: Collection[Path], recipe: Source) -> list[Problem]:
    """Warnings about variables of the recipe itself that nothing uses; an error where --set makes such a one.

    Variables of a base may be there for other recipes.
    """
    names = {path[1] for path in used}
    given = tree.data.get("vars", {})
    found: list[Problem] = []
    for name in given if isinstance(given, dict) else ():
        place = tree.place(("vars", name))
        if name in names or (place.source is not recipe and not place.source.is_option):
            continue
        what, fix = f"the variable '{name}' is used nowhere", f"write ${{vars.{name}}} where it is wanted, or remove it"
        problem = tree.problem_at(("vars", name), what, fix=fix, at_key=True)
        if place.source.is_option:
            found.append(replace(problem, fix=did_you_mean(name, map(str, names)) if names else fix))
        else:
            found.append(replace(problem, severity="warning"))
    return found
