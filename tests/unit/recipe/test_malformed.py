"""Every malformed recipe gets all its problems at once, each with its place, its cause and the way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from support.malformed import CASES, Malformed, recipe, unmarked
from support.malformed_composition import COMPOSED
from support.malformed_runners import RUNNER_CASES

from trtx.hardware import support
from trtx.recipe.checks import read_recipe
from trtx.recipe.describe import make_json_schema
from trtx.recipe.overrides import Overrides
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.schema import Recipe
from trtx.recipe.tree import Unreadable, read_tree

SCHEMA = jsonschema.Draft202012Validator(make_json_schema())

ALL = (*CASES, *RUNNER_CASES, *COMPOSED)

# JSON has one kind of number, so JSON Schema takes 1.0 for the integer that it equals.
JSON_NUMBERS = frozenset({"a fraction of zero"})


def name_of(value: Any) -> str | None:
    return value.name if isinstance(value, Malformed) else None


def problems_of(folder: Path, case: Malformed) -> tuple[Problem, ...]:
    for name, text in {**case.files, "recipe.yaml": case.marked}.items():
        (folder / name).write_text(unmarked(text))
    overrides = Overrides(tuple(map(unmarked, case.set)), tuple(map(unmarked, case.unset)))
    try:
        return read_recipe(folder / "recipe.yaml", support, overrides, case.env).warnings
    except RecipeInvalid as error:
        return tuple(error.problems)


def test_case_names_are_unique_and_there_are_many() -> None:
    assert len({case.name for case in ALL}) == len(ALL) >= 180


def test_the_recipe_that_the_cases_start_from_is_valid(tmp_path: Path) -> None:
    assert problems_of(tmp_path, Malformed("valid", recipe(), ())) == ()


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_a_malformed_recipe_is_explained_where_it_is_wrong(case: Malformed, tmp_path: Path) -> None:
    found = problems_of(tmp_path, case)
    shown = "\n\n".join(problem.render() for problem in found)
    places = [(problem.file.removeprefix(f"{tmp_path}/"), problem.line, problem.col) for problem in found]
    # One place may have several problems; the marks say where, the messages how many.
    assert sorted(set(places)) == case.marks, shown
    assert len(found) == len(case.messages), shown
    for problem, parts in zip(found, case.messages, strict=True):
        assert [part for part in parts if part not in problem.render()] == [], shown
    assert {problem.severity for problem in found} == {"warning" if case.warns else "error"}


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_a_problem_shows_its_line_with_a_caret_under_the_place(case: Malformed, tmp_path: Path) -> None:
    for problem in problems_of(tmp_path, case):
        head, *rest = problem.render().splitlines()
        assert head.startswith(f"{problem.file}:{problem.line}:{problem.col}: {problem.severity}: ")
        if problem.source.strip():
            source, caret = rest[0][8:], rest[1][8:]
            shown = problem.source[problem.col - 1 : problem.col]
            assert source[caret.index("^")] == (shown if shown.isprintable() else " ")


@pytest.mark.parametrize("case", COMPOSED, ids=name_of)
def test_values_of_the_environment_are_never_repeated(case: Malformed, tmp_path: Path) -> None:
    for problem in problems_of(tmp_path, case):
        words = re.findall(r"\w+", problem.render())
        assert [value for value in case.env.values() if set(re.findall(r"\w+", value)) & set(words)] == []


@pytest.mark.parametrize("case", (*CASES, *RUNNER_CASES), ids=name_of)
def test_the_json_schema_accepts_what_the_models_accept(case: Malformed) -> None:
    try:
        tree = read_tree("recipe.yaml", case.text)
    except Unreadable:
        return
    if tree.problems or case.name in JSON_NUMBERS:
        return
    try:
        Recipe.model_validate(tree.data)
        accepted = True
    except ValidationError:
        accepted = False
    assert SCHEMA.is_valid(tree.data) is accepted
