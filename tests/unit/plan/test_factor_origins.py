"""Every factor of every step says where it came from, down to the line of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from support.plans import edited, make_facts, pin

from trtx.plan.effects import is_within, settings_of
from trtx.plan.factor_origins import DERIVED, FactorOrigin, Origins, RecipeOrigins, find_derived
from trtx.plan.make import Options, make_plan
from trtx.plan.steps import Plan, Step
from trtx.recipe.cells import Cell
from trtx.recipe.load import parse_recipe
from trtx.stages.find_params import all_params


def parameters(model: type[BaseModel], path: tuple[str, ...] = ("params",)) -> Iterator[tuple[str, ...]]:
    """Every parameter of a stage, down through nested models, with `*` for free names."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        inner = get_args(kind)[1] if get_origin(kind) is dict else kind
        star = ("*",) if get_origin(kind) is dict else ()
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from parameters(inner, (*path, name, *star))
        else:
            yield (*path, name)


PARAMETERS = list(dict.fromkeys((model.stage, path) for model in all_params() for path in parameters(model)))


@pytest.mark.parametrize(("stage", "path"), PARAMETERS, ids=[".".join((stage, *path)) for stage, path in PARAMETERS])
def test_every_parameter_of_every_stage_has_a_declared_origin(stage: str, path: tuple[str, ...]) -> None:
    assert settings_of(stage, path) or find_derived(stage, path)


def test_no_declared_derivation_is_stale() -> None:
    for row in DERIVED:
        assert any(is_within((stage, *path), row) for stage, path in PARAMETERS), row


def prepare(tmp_path: Path, changes: dict[str, Any] | None = None, **config: Any) -> tuple[Plan, RecipeOrigins]:
    """The plan of a recipe as it is written in a file, and the origins of its factors."""
    loaded = parse_recipe(Path("recipe.yaml"), yaml.safe_dump(edited(changes or {}), sort_keys=False))
    sources, facts, cells = pin(loaded.recipe, **config), make_facts(tmp_path), loaded.cells()

    def plan_cell(cell: Cell) -> Plan:
        return make_plan([cell], loaded.path, sources, facts, Options())

    plan = make_plan(cells, loaded.path, sources, facts, Options())
    return plan, RecipeOrigins(loaded, cells, plan_cell)


def origin(plan: Plan, origins: Origins, step: str, *path: str) -> FactorOrigin:
    return origins.of(plan.step(step))[path]


def test_every_factor_of_every_step_has_an_origin(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    for step in plan.steps:
        for path, found in origins.of(step).items():
            assert found.where, (step.id, path)


def test_a_setting_is_named_with_its_line_and_column(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    found = origin(plan, origins, "build/cpu/int8", "params", "limits", "max_batch_size")
    assert (found.kind, found.setting) == ("recipe", "engine.limits.max_batch_size")
    assert found.where.startswith("recipe.yaml:")
    line = int(found.where.split(":")[1])
    text = yaml.safe_dump(edited({}), sort_keys=False).splitlines()[line - 1]
    assert "max_batch_size: 4" in text


def test_a_setting_that_nobody_states_is_a_default(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    assert str(origin(plan, origins, "benchmark/cpu/int8", "params", "repeats")) == "benchmark.repeats, default"


def test_a_target_s_own_setting_is_named_for_its_steps_and_the_recipe_s_for_others(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path, {"targets.fast.engine": {"limits": {"max_batch_size": 2}}})
    path = ("params", "limits", "max_batch_size")
    assert origin(plan, origins, "build/fast/int8", *path).setting == "targets.fast.engine.limits.max_batch_size"
    assert origin(plan, origins, "build/cpu/int8", *path).setting == "engine.limits.max_batch_size"
    path = ("params", "limits", "max_seq_len")
    assert origin(plan, origins, "build/fast/int8", *path).setting == "engine.limits.max_seq_len"


def test_a_value_of_a_matrix_is_named_with_its_place_there(tmp_path: Path) -> None:
    axes = {"batch": {"path": "engine.limits.max_batch_size", "values": [2, 4]}}
    plan, origins = prepare(tmp_path, {"matrix": {"axes": axes}})
    found = origin(plan, origins, "build/cpu/int8/batch-2", "params", "limits", "max_batch_size")
    assert "axis batch" in found.where


def test_a_base_image_with_a_digest_of_the_lock_says_so(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    step = plan.step("package/cpu/int8")
    pinned = replace(step, params=step.params | {"base": step.params["base"] + "@sha256:" + "0" * 64})
    assert origins.of(pinned)["params", "base"].where == "default, with the digest that the lock has"
    assert origins.of(step)["params", "base"].where == "default"


def test_a_step_that_serves_several_cells_names_the_settings_of_its_variant(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    found = origin(plan, origins, "calibrate/int8", "params", "quantization", "algorithm")
    assert found.setting == "quantization.int8.algorithm"


def test_requests_come_from_the_setting_or_from_the_highest_level(tmp_path: Path) -> None:
    path = ("params", "workloads", "chat", "requests")
    plan, origins = prepare(tmp_path)
    assert origin(plan, origins, "benchmark/cpu/int8", *path).setting == "benchmark.workloads.chat.concurrency"
    load = {"input_tokens": 8, "output_tokens": 8, "concurrency": [1], "requests": 9}
    plan, origins = prepare(tmp_path, {"benchmark.workloads.chat": load})
    assert origin(plan, origins, "benchmark/cpu/int8", *path).setting == "benchmark.workloads.chat.requests"


def test_workloads_with_dots_in_their_names_keep_them(tmp_path: Path) -> None:
    load = {"input_tokens": 8, "output_tokens": 8, "concurrency": [1]}
    plan, origins = prepare(tmp_path, {"benchmark.workloads": {"v1.long": load}})
    found = origin(plan, origins, "benchmark/cpu/int8", "params", "workloads", "v1.long", "input_tokens")
    assert found.setting == 'benchmark.workloads."v1.long".input_tokens'


def test_the_dtype_is_the_setting_s_or_with_auto_the_model_s(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    assert origin(plan, origins, "build/cpu/int8", "params", "dtype").kind == "model"
    plan, origins = prepare(tmp_path, {"engine.dtype": "bfloat16"})
    found = origin(plan, origins, "build/cpu/int8", "params", "dtype")
    assert (found.kind, found.setting) == ("recipe", "engine.dtype")


def test_the_shape_is_the_model_s_and_the_identity_the_source_s(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    shape = origin(plan, origins, "build/cpu/int8", "params", "model", "hidden_size")
    assert (shape.kind, shape.where) == ("model", "config.json of demo://tiny-llama")
    identity = origin(plan, origins, "download/model", "params", "identity")
    assert (identity.kind, identity.setting) == ("source", "model.source")


def test_inputs_tools_and_the_machine_are_named(tmp_path: Path) -> None:
    plan, origins = prepare(tmp_path)
    kinds = {
        ("inputs", "weights"): ("input", "convert/cpu/int8"),
        ("toolchain", "torch"): ("installed", "installed distribution"),
        ("machine", "cpu"): ("machine", "model of the processor"),
    }
    for path, (kind, where) in kinds.items():
        found = origin(plan, origins, "benchmark/cpu/int8", *path)
        assert (found.kind, found.where) == (kind, where)
    assert origin(plan, origins, "build/cpu/int8", "toolchain", "c++").where == "compiler on PATH"
    assert "code" in origin(plan, origins, "build/cpu/int8", "code").where


def test_without_the_recipe_at_hand_the_names_of_settings_are_known(tmp_path: Path) -> None:
    plan, _ = prepare(tmp_path)
    steps: dict[str, Step] = {step.stage: step for step in plan.steps}
    found = Origins().of(steps["build"])
    assert found["params", "limits", "max_seq_len"].setting == "engine.limits.max_seq_len"
    assert found["params", "rank", "rank"].kind == "trtx"
    for step in plan.steps:
        assert all(one.where for one in Origins().of(step).values())
