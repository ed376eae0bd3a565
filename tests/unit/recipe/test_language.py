"""The language as a whole: what it knows is what the rest of trtx knows, and everything in it is explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import BaseModel
from support.malformed import engine, recipe, target
from support.project import RECIPES

from trtx.backends.images import MOVING_TAGS as IMAGE_TAGS
from trtx.hardware import support
from trtx.models.formats import ALGORITHMS, READ_ONLY, KvCacheFormat
from trtx.recipe.check_model import GROUP_SIZES, find_misfits
from trtx.recipe.checks import MOVING_TAGS, NEEDS_CALIBRATION, read_recipe
from trtx.recipe.describe import make_json_schema
from trtx.recipe.load import parse_recipe
from trtx.recipe.lookup import fields_of, find_key
from trtx.recipe.parts import Part
from trtx.recipe.schema import AS_STORED, Algorithm, Quantization, Recipe
from trtx.recipe.tree import read_tree
from trtx.recipe.unavailable import RULES, find_unavailable

ROOT = Path(__file__).parents[3]


def test_the_language_has_the_algorithms_of_the_engine_less_those_that_are_only_read() -> None:
    engine = tuple(name for name in ALGORITHMS if name not in READ_ONLY)
    assert tuple(name for name in get_args(Algorithm) if name != AS_STORED) == engine
    assert get_args(Quantization.model_fields["kv_cache"].annotation) == get_args(KvCacheFormat)


def test_the_facts_of_algorithms_agree_with_the_engine() -> None:
    assert {name for name in NEEDS_CALIBRATION if name in ALGORITHMS} == {
        name for name, facts in ALGORITHMS.items() if facts.needs_calibration
    }
    sizes = {name: facts.group_size for name, facts in ALGORITHMS.items() if facts.group_size}
    assert {name: size for name, size in sizes.items() if name not in READ_ONLY} == GROUP_SIZES


def test_moving_tags_agree_with_the_packaging() -> None:
    assert MOVING_TAGS == IMAGE_TAGS


def test_no_algorithm_of_the_language_is_refused() -> None:
    for name in get_args(Algorithm):
        assert not any(find_unavailable({"quantization": {"a": {"algorithm": name}}}))


def test_every_refusal_names_a_key_that_exists() -> None:
    for rule in RULES:
        names = [part for part in rule.path if part != "*"]
        assert any([part for part in place if part != "*"] == names for place in find_key(str(names[-1]))), rule.path


def test_no_default_is_refused() -> None:
    made = read_tree("recipe.yaml", recipe()).data
    everything = json.loads(Recipe.model_validate(made).model_dump_json(by_alias=True, exclude_none=True))
    assert list(find_unavailable(everything)) == []


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    waiting = [model]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += current.__subclasses__()
    return found


@pytest.mark.parametrize("model", sorted(models(Part), key=str))
def test_every_field_has_a_description_and_no_key_is_named_on(model: type[Any]) -> None:
    for name, field in fields_of(model).items():
        assert field.description, f"{model.__name__}.{name}"
        assert name not in ("on", "off", "yes", "no", "y", "n")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_valid_and_described(path: Path) -> None:
    loaded = read_recipe(path, support)
    assert loaded.recipe.name == path.stem
    assert f"[{path.name}]({path.name})" in (ROOT / "recipes" / "README.md").read_text()
    assert loaded.text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    jsonschema.Draft202012Validator(make_json_schema()).validate(loaded.tree.data)
    assert all("simulated" in warning.what for warning in loaded.warnings)


def shape(**changes: Any) -> Any:
    sizes = {
        "rope_scaling": None,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_layers": 6,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 512,
    }
    return SimpleNamespace(**(sizes | changes))


def refusals(text: str, model: Any) -> list[str]:
    loaded = parse_recipe(Path("recipe.yaml"), text)
    return [problem.render() for problem in find_misfits(loaded, model)]


def test_a_model_that_the_recipe_suits_passes() -> None:
    assert refusals(recipe(), shape()) == []


def test_longer_sequences_than_the_model_has_are_refused_where_they_are_written() -> None:
    (found,) = refusals(engine("  limits: {max_seq_len: 1024}"), shape())
    assert found.startswith("recipe.yaml:8:25: error: max_seq_len 1024 is more than the model's 512 positions")
    (found,) = refusals(target(", engine: {limits: {max_seq_len: 1024}}"), shape())
    assert found.startswith("recipe.yaml:10:50:")


def test_a_dynamic_rope_is_said_to_be_why_there_are_no_more() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    (found,) = refusals(engine("  limits: {max_seq_len: 1024}"), shape(rope_scaling=scaling))
    assert "why: beyond them its dynamic RoPE turns all keys anew with every token" in found
    (found,) = refusals(engine("  limits: {max_seq_len: 1024}"), shape(rope_scaling={"rope_type": "linear"}))
    assert "dynamic" not in found


def test_a_default_that_the_model_is_too_short_for_is_refused_at_the_engine() -> None:
    (found,) = refusals(engine("  dtype: auto"), shape())
    assert found.startswith("recipe.yaml:7:1: error: max_seq_len 2048")
    assert "set engine.limits.max_seq_len to 512" in found


def test_calibration_rows_longer_than_the_model_are_refused_only_when_asked_for() -> None:
    text = "quantization:\n  a: {algorithm: int8_sq, calibration: {max_length: 600}}\n"
    (found,) = refusals(recipe(quantization=text), shape())
    assert "calibration.max_length 600" in found
    assert refusals(recipe(), shape(max_position_embeddings=256)) == []


def test_groups_must_divide_the_columns() -> None:
    text = recipe(quantization="quantization:\n  a: {algorithm: int4_awq}\n")
    assert refusals(text, shape()) == []
    (found,) = refusals(text, shape(intermediate_size=704))
    assert "int4_awq needs columns in groups of 128, and intermediate_size has 704" in found
    assert "recipe.yaml:5:18" in found


class Parallel:
    """A recipe with parallelism; that of pipelines this version refuses to load, but its rules stand."""

    def __init__(self, algorithm: str = "none", **parallelism: int) -> None:
        text = recipe(quantization=f"quantization:\n  a: {{algorithm: {algorithm}}}\n")
        self.loaded = parse_recipe(Path("recipe.yaml"), text)
        target = self.loaded.recipe.targets["cpu"]
        changed = target.model_copy(update={"parallelism": target.parallelism.model_copy(update=parallelism)})
        changed_recipe = self.loaded.recipe.model_copy(update={"targets": {"cpu": changed}})
        object.__setattr__(self.loaded, "recipe", changed_recipe)

    def refusals(self, model: Any) -> list[str]:
        return [problem.what for problem in find_misfits(self.loaded, model)]


def test_heads_and_layers_must_be_divisible() -> None:
    assert Parallel(tensor=4, pipeline=3).refusals(shape()) == []
    assert Parallel(tensor=8).refusals(shape()) == []  # Two ranks have the same key-value head.
    odd = shape(num_heads=6, num_kv_heads=3)
    assert Parallel(tensor=2).refusals(odd) == ["3 key-value heads cannot be divided by tensor parallelism 2"]
    assert Parallel(tensor=3).refusals(shape()) == [
        "8 attention heads cannot be divided by tensor parallelism 3",
        "4 key-value heads cannot be divided by tensor parallelism 3",
    ]
    assert Parallel(pipeline=4).refusals(shape()) == ["6 layers cannot be divided by pipeline parallelism 4"]


def test_groups_must_divide_the_columns_of_a_rank() -> None:
    (found,) = Parallel("int4_wo", tensor=4).refusals(shape(num_heads=16))
    assert "intermediate_size has 192 (per rank, tensor parallelism 4)" in found


def test_reading_a_recipe_imports_nothing_slow() -> None:
    script = f"""
import sys
from pathlib import Path
from trtx.hardware import support
from trtx.recipe.checks import read_recipe
read_recipe(Path({str(RECIPES[-1])!r}), support)
slow = {{"rich", "jinja2", "docker", "requests", "numpy", "torch"}}
print(sorted({{name.partition(".")[0] for name in sys.modules}} & slow))
print("trtx.recipe.messages" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\nFalse\n"
