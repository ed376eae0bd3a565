"""Recipes, facts and plans for tests. Their toolchain is this machine's, so that their steps run."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from trtx.hardware.host import read_host
from trtx.models.config import read_model_config
from trtx.models.sources.base import Resolved
from trtx.plan.facts import TOOLCHAIN, Facts
from trtx.plan.make import Options, make_plan
from trtx.plan.resolve import PinnedModel, PinnedSources, dataset_name, model_name
from trtx.plan.steps import Plan
from trtx.recipe.cells import make_cells, select_cells
from trtx.recipe.schema import Recipe
from trtx.stages import toolchain

find_version = functools.cache(toolchain.find_version)

RECIPE: dict[str, Any] = {
    "schema": "trtx/v1",
    "name": "tiny",
    "model": {"source": "demo://tiny-llama"},
    "quantization": {"fp32": {"algorithm": "none"}, "int8": {"algorithm": "int8_wo"}},
    "engine": {"limits": {"max_batch_size": 4, "max_num_tokens": 256, "max_seq_len": 256}},
    "targets": {"cpu": {"gpu": "cpu"}, "fast": {"gpu": "cpu-avx512", "quantization": ["int8"]}},
    "benchmark": {"workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [1, 2]}}},
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


def edited(changes: dict[str, Any]) -> dict[str, Any]:
    """RECIPE with values replaced by dotted path; None deletes."""
    recipe = copy.deepcopy(RECIPE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = recipe
        for name in parents:
            node = node.setdefault(name, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return recipe


def make_facts(tmp_path: Path, **versions: str) -> Facts:
    names = {name for stage in TOOLCHAIN.values() for name in stage}
    return Facts(
        host=read_host(),
        versions={name: find_version(name) for name in names} | versions,
        pins={name: find_version(name) for name in ("python", "torch")},
        compiler=find_version("c++"),
        kernels=find_version("kernels"),
        own_code="code",
        python="/usr/bin/python3",
        cache_dir=tmp_path / "cache",
    )


def pin(recipe: Recipe, identity: str = "seed=0", **config: Any) -> PinnedSources:
    datasets = {
        dataset_name(variant.calibration): Resolved(variant.calibration.dataset, "rows", {})
        for variant in recipe.quantization.values()
    }
    model = Resolved(recipe.model.source, identity, CONFIG | config)
    return PinnedSources({model_name(recipe.model): PinnedModel(model, read_model_config(model.config))}, datasets)


def plan_of(
    tmp_path: Path,
    changes: dict[str, Any] | None = None,
    *,
    identity: str = "seed=0",
    select: str | None = None,
    options: Options | None = None,
    versions: dict[str, str] | None = None,
    **config: Any,
) -> Plan:
    recipe = Recipe.model_validate(edited(changes or {}))
    facts = make_facts(tmp_path, **(versions or {}))
    cells = select_cells(make_cells(recipe), select)
    return make_plan(cells, Path("recipe.yaml"), pin(recipe, identity, **config), facts, options or Options())


def keys(plan: Plan) -> dict[str, str]:
    return {step.id: step.key for step in plan.steps}
