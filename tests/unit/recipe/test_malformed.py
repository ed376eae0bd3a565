"""Every malformed recipe gets all its problems at once, each with its place, its cause and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from support.malformed import CASES, Malformed, recipe

from trtx.hardware import support
from trtx.recipe.checks import read_recipe
from trtx.recipe.describe import make_json_schema
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.schema import Recipe
from trtx.recipe.tree import Unreadable, read_tree

SCHEMA = jsonschema.Draft202012Validator(make_json_schema())

# JSON has one kind of number, so JSON Schema takes 1.0 for the integer that it equals.
JSON_NUMBERS = frozenset({"a fraction of zero"})


def name_of(value: Any) -> str | None:
    return value.name if isinstance(value, Malformed) else None


def problems_of(path: Path, text: str) -> tuple[Problem, ...]:
    path.write_text(text)
    try:
        return read_recipe(path, support).warnings
    except RecipeInvalid as error:
        return tuple(error.problems)


def test_case_names_are_unique_and_there_are_many() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 100


def test_the_recipe_that_the_cases_start_from_is_valid(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "recipe.yaml", recipe()) == ()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_malformed_recipe_is_explained_where_it_is_wrong(case: Malformed, tmp_path: Path) -> None:
    found = problems_of(tmp_path / "recipe.yaml", case.text)
    shown = "\n\n".join(problem.render() for problem in found)
    places = [(problem.line, problem.col) for problem in found]
    # One place may have several problems; the marks say where, the messages how many.
    assert sorted(set(places)) == case.marks, shown
    assert len(found) == len(case.messages), shown
    for problem, parts in zip(found, case.messages, strict=True):
        assert [part for part in parts if part not in problem.render()] == [], shown
    assert {problem.severity for problem in found} == {"warning" if case.warns else "error"}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_problem_shows_its_line_with_a_caret_under_the_place(case: Malformed, tmp_path: Path) -> None:
    for problem in problems_of(tmp_path / "recipe.yaml", case.text):
        head, *rest = problem.render().splitlines()
        assert head.startswith(f"{tmp_path}/recipe.yaml:{problem.line}:{problem.col}: {problem.severity}: ")
        if problem.source.strip():
            source, caret = rest[0][8:], rest[1][8:]
            assert source[caret.index("^")] == problem.source[problem.col - 1 : problem.col].replace("\t", " ")


@pytest.mark.parametrize("case", CASES, ids=name_of)
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
