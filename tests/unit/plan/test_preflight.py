"""What cannot end well is refused before anything runs, with the place in the recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from support.plans import edited, make_facts, pin

from trtx.hardware import support
from trtx.plan.preflight import check_fit
from trtx.recipe.checks import read_recipe
from trtx.recipe.problems import RecipeInvalid


def refusal(tmp_path: Path, changes: dict[str, Any], memory_bytes: int = 8 << 30) -> str:
    """The problems that check_fit finds in an edited recipe; empty when there are none."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(edited(changes), sort_keys=False))
    loaded = read_recipe(path, support)
    facts = make_facts(tmp_path)
    facts = dataclasses.replace(facts, host=dataclasses.replace(facts.host, memory_bytes=memory_bytes))
    try:
        check_fit(loaded, loaded.cells(), pin(loaded.recipe), facts)
    except RecipeInvalid as error:
        return error.render()
    return ""


def test_a_recipe_that_fits_is_not_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, {}) == ""


def test_an_engine_that_the_memory_cannot_hold_is_refused_at_its_target(tmp_path: Path) -> None:
    text = refusal(tmp_path, {}, memory_bytes=1 << 20)
    assert "recipe.yaml:" in text
    assert "the engine needs" in text
    assert "gpu: cpu" in text


def test_a_cache_too_small_for_one_sequence_is_refused_at_its_size(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"engine.kv_cache": {"size": "4KiB"}})
    assert "cannot hold one sequence of 256 tokens" in text
    assert "size: 4KiB" in text


def test_a_part_of_a_fused_matrix_cannot_be_excluded_alone(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"quantization.int8.exclude": ["lm_head", "*q_proj"]})
    assert "cannot be excluded from quantization alone" in text
    assert "exclude all of them or none" in text
