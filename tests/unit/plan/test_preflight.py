"""What cannot end well is refused before anything runs, with the place in the recipe."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.plans import edited, make_facts, pin

from trtx.hardware import support
from trtx.plan.preflight import check_fit
from trtx.recipe.checks import read_recipe
from trtx.recipe.problems import RecipeInvalid


def refusal(tmp_path: Path, changes: dict[str, Any], memory_bytes: int = 8 << 30, **config: Any) -> str:
    """The problems that check_fit finds in an edited recipe; empty when there are none."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(edited(changes), sort_keys=False))
    loaded = read_recipe(path, support)
    facts = make_facts(tmp_path)
    facts = dataclasses.replace(facts, host=dataclasses.replace(facts.host, memory_bytes=memory_bytes))
    try:
        check_fit(loaded, loaded.cells(), pin(loaded.recipe, **config), facts)
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


MIXTURE = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MIXTURE, "a mixture of experts cannot be cut into 2 tensor-parallel ranks yet"),
        ({"vocab_size": 513}, "513 vocabulary rows do not divide by 2"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 32}, "5 attention heads"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_where_the_recipe_asks_for_ranks(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    changes = {"targets.cpu.parallelism": {"tensor": 2}}
    text = refusal(tmp_path, changes, **config)
    assert message in text
    assert re.search(r"recipe.yaml:\d+:\d+: error: cpu/fp32", text)
    assert "tensor: 2" in text
    assert refusal(tmp_path, changes) == ""


def test_more_ranks_than_a_host_has_devices_are_refused(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 8}
    text = refusal(tmp_path, {"targets.cpu.parallelism": {"tensor": 16}}, **heads)
    assert "16 ranks are more than the 8 devices of one host" in text
    assert "tensor: 16" in text


def test_ranks_on_processors_share_the_memory_of_the_machine(tmp_path: Path) -> None:
    changes = {"targets.cpu.parallelism": {"tensor": 2}, "engine.kv_cache": {"size": "1GiB"}}
    assert refusal(tmp_path, changes, memory_bytes=3 << 30) == ""
    text = refusal(tmp_path, changes, memory_bytes=2 << 30)
    assert "each of 2 ranks on this machine has 1.00 GiB" in text
