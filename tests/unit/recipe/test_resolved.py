"""A resolved recipe is a recipe again: it loads to an equal one, and passes the checks that the first one passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.composition import Folder
from support.malformed import recipe
from support.project import RECIPES

from trtx.hardware import support
from trtx.recipe.checks import check_recipe, read_recipe
from trtx.recipe.load import LoadedRecipe, parse_recipe
from trtx.recipe.problems import Path as Place
from trtx.recipe.resolved import leaf_origins, resolve_data, to_yaml, unstated_defaults

FILE = Path("recipe.yaml")

# Texts that YAML 1.1, the language or a comment could take for something else.
TRICKY = [
    "no",
    "on",
    "012",
    "1:30",
    "1e5",
    "~",
    "null",
    "a: b",
    "a #b",
    "${x}",
    "$${x}",
    "- a",
    "'",
    '"',
    "{",
    "=",
    "ü",
]
texts = st.sampled_from(TRICKY) | st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
lines = st.lists(texts, min_size=1, max_size=3).map("\n".join)
names = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,8}\Z")
counts = st.integers(1, 1 << 40)
sizes = st.builds(lambda number, unit: f"{number}{unit}", st.integers(1, 900), st.sampled_from(["MiB", "GiB", " kB"]))
calibration = st.fixed_dictionaries(
    {}, optional={"dataset": st.just("demo://docs"), "column": texts, "samples": counts}
)
variant = st.fixed_dictionaries(
    {"algorithm": st.sampled_from(["none", "int8_wo", "fp8"])},
    optional={"exclude": st.lists(texts, max_size=3), "calibration": calibration},
)
kv_cache = st.fixed_dictionaries(
    {},
    optional={"size": sizes, "memory_fraction": st.floats(1e-12, 0.95), "tokens_per_block": st.sampled_from([8, 64])},
)
engine = st.fixed_dictionaries(
    {}, optional={"limits": st.fixed_dictionaries({}, optional={"max_num_tokens": counts}), "kv_cache": kv_cache}
)
target = st.fixed_dictionaries({"gpu": texts}, optional={"engine": engine, "quantization": st.lists(names, min_size=1)})
recipes = st.fixed_dictionaries(
    {
        "schema": st.just("trtx/v1"),
        "name": names,
        "model": st.fixed_dictionaries({"source": st.sampled_from(["demo://tiny-llama", "hf://a/b"])}),
        "quantization": st.dictionaries(names, variant, min_size=1, max_size=3),
        "targets": st.dictionaries(names, target, min_size=1, max_size=3),
    },
    optional={
        "description": lines,
        "engine": engine,
        "runners": st.dictionaries(names, st.just({"type": "local"}), max_size=2),
        "serving": st.fixed_dictionaries({}, optional={"port": st.integers(1, 65535)}),
    },
)


def escaped(value: Any) -> Any:
    """The value as a file states it: its texts hold no references."""
    if isinstance(value, dict):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner) for inner in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def printed(loaded: LoadedRecipe, *, origins: bool = False) -> str:
    data = resolve_data(loaded)
    return to_yaml(data, leaf_origins(loaded, data), unstated_defaults(loaded)) if origins else to_yaml(data)


@settings(max_examples=60, deadline=None)
@given(recipes, st.booleans())
def test_what_is_printed_loads_to_an_equal_recipe(data: dict[str, Any], origins: bool) -> None:
    first = parse_recipe(FILE, yaml.safe_dump(escaped(data), allow_unicode=True), environ={})
    text = printed(first, origins=origins)
    second = parse_recipe(FILE, text, environ={})
    assert second.recipe == first.recipe
    assert printed(second) == printed(first)
    # Nothing that the first one leaves to its defaults is wrong once it is stated.
    problems = {problem.what for problem in check_recipe(first, support)}
    assert {problem.what for problem in check_recipe(second, support)} <= problems


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_project_resolve_to_themselves(path: Path, tmp_path: Path) -> None:
    loaded = read_recipe(path, support)
    again = tmp_path / path.name
    again.write_text(printed(loaded, origins=True))
    assert read_recipe(again, support).recipe == loaded.recipe


def test_keys_come_in_the_order_of_the_schema_and_values_as_they_were_written() -> None:
    text = recipe(engine="", extra="engine: {kv_cache: {size: 1.50 GiB}}\ndescription: |\n  a\n  b\n")
    data = resolve_data(parse_recipe(FILE, text))
    assert list(data)[:6] == ["schema", "name", "description", "model", "quantization", "engine"]
    assert data["engine"]["kv_cache"]["size"] == "1.50 GiB"
    assert 'description: "a\\nb\\n"\n' in printed(parse_recipe(FILE, text))


def test_defaults_that_must_not_be_stated_are_comments(tmp_path: Path) -> None:
    loaded = Folder(tmp_path).load(recipe(engine="engine: {kv_cache: {size: 1GiB}}\n"))
    text = printed(loaded, origins=True)
    for line in (
        "  # revision: main by default, but only hf:// sources have revisions",
        "    # memory_fraction: 0.9 by default, without a size",
        "    # exclude: nothing is quantized, so there is nothing to exclude",
        "      # max_length: 512 by default, or what the model allows",
    ):
        assert f"{line}\n" in text


def test_origins_stand_in_one_column_but_for_long_lines(tmp_path: Path) -> None:
    loaded = Folder(tmp_path).load(recipe(extra=f"description: {'x' * 90}\n"))
    lines = [line for line in printed(loaded, origins=True).splitlines() if "  # " in line and "x" * 90 not in line]
    values = [line for line in lines if not line.strip().startswith("#")]
    assert len({line.index("  # ", len(line.rstrip().split("  # ")[0])) for line in values}) == 1


def test_every_leaf_has_an_origin() -> None:
    loaded = parse_recipe(FILE, recipe(package="package: {emit: [compose]}\n"))
    data = resolve_data(loaded)
    origins = leaf_origins(loaded, data)
    place: Place = ("package", "emit", 0)
    assert origins[place] == "recipe.yaml:11:18"
    assert origins["serving", "port"] == "default"
    assert ("serving",) not in origins
