"""Names of algorithms from ModelOpt's own library mean what they mean there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from trtx.models.formats import ALGORITHMS
from trtx.recipe.load import LoadedRecipe, parse_recipe
from trtx.recipe.problems import RecipeInvalid
from trtx.recipe.schema import Algorithm, Quantization
from trtx.recipe.tensorrt_llm import ALIASES, COMPOSED

SPEC = find_spec("modelopt_recipes")
LIBRARY = Path(next(iter(SPEC.submodule_search_locations or ()))) if SPEC else Path()
# Of hf_ptq.py, quantize.py and hf_quant_config.json, not of the library.
ELSEWHERE = {"full_prec", "fp8_pc_pt", "fp8_pb_wo", "w4a16_awq", "w4a16_gptq"}


def load(variant: str) -> LoadedRecipe:
    text = f"schema: trtx/v1\nname: a\nmodel: {{source: demo://tiny-llama}}\nquantization:\n  v: {variant}\n"
    return parse_recipe(Path("recipe.yaml"), text + "targets: {t: {gpu: cpu}}\n")


@pytest.mark.parametrize("name", ALIASES)
def test_a_name_of_modelopt_s_is_taken_for_the_algorithm(name: str) -> None:
    assert load(f"{{algorithm: {name}}}").recipe.quantization["v"].algorithm == ALIASES[name]
    assert ALIASES[name] in Algorithm.__args__  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(ALIASES.keys() - ELSEWHERE))
def test_a_name_of_the_library_has_the_configuration_that_the_algorithm_has(name: str) -> None:
    assert (LIBRARY / f"configs/ptq/presets/model/{name}.yaml").is_file()
    config = ALGORITHMS[ALIASES[name]].modelopt_config
    assert config is not None
    # INT8_SMOOTHQUANT_CFG is made of int8_smoothquant.yaml, and so on.
    assert config.removesuffix("_CFG").lower().startswith(name.removesuffix("_beta"))


@pytest.mark.parametrize("name", COMPOSED)
def test_a_recipe_of_the_library_sets_the_cache_as_well(name: str) -> None:
    assert (LIBRARY / f"general/ptq/{name}.yaml").is_file()
    variant = load(f"{{algorithm: {name}}}").recipe.quantization["v"]
    assert (variant.algorithm, variant.kv_cache) == COMPOSED[name]
    assert load(f"{{algorithm: {name}, kv_cache: fp8}}").recipe.quantization["v"] == variant.model_copy()
    with pytest.raises(RecipeInvalid) as error:
        load(f"{{algorithm: {name}, kv_cache: int8}}")
    assert "kv_cache says int8" in error.value.problems[0].what


def test_a_name_without_an_equal_is_refused_with_the_nearest() -> None:
    """ModelOpt's `int8` has no smoothing: it is none of this language's algorithms."""
    with pytest.raises(RecipeInvalid) as error:
        load("{algorithm: int8}")
    assert error.value.problems[0].fix == "did you mean 'int8_wo'?"
    assert Quantization.model_validate({"algorithm": "int8_smoothquant"}).algorithm == "int8_sq"
