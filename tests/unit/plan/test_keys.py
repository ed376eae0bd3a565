"""Every setting of the language does to keys what the table of effects declares: no more, and no less."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.plans import CONFIG, make_facts, plan_of
from support.settings import FULL, flips, leaves, places

from trtx.backends.tensorrt_llm.releases import Release
from trtx.cache.store import Store
from trtx.files import canonical_json, sha256_bytes
from trtx.hardware.host import Host
from trtx.models.config import read_model_config
from trtx.models.sources.base import Resolved
from trtx.plan.effects import EFFECTS, ONE_VALUE, STAGES, Effect, is_within, reason_of, rows_of, stages_of
from trtx.plan.facts import Facts
from trtx.plan.keys import EXCLUDED, FACTORS, find_changes, flatten, make_factors, make_key
from trtx.plan.make import Options, make_plan
from trtx.plan.releases import PinnedRelease, release_name
from trtx.plan.resolve import PinnedModel, PinnedSources, dataset_name, model_name
from trtx.plan.steps import Plan, Step
from trtx.recipe import problems
from trtx.recipe.cells import make_cells
from trtx.recipe.document import Document
from trtx.recipe.lookup import value_at
from trtx.recipe.schema import Recipe
from trtx.recipe.unavailable import find_unavailable
from trtx.stages.params import PARAMS, ConvertParams

SETTINGS = list(dict.fromkeys(leaves()))
# Settings that the language gives one value.
FIXED = [setting for setting in SETTINGS if not any(flips(path) for path in places(setting))]
# The device decides about `dtype: auto`: GPUs compute a float32 checkpoint in bfloat16.
WIDE = {**CONFIG, "torch_dtype": "float32"}
SHAPE = read_model_config(WIDE)

Cells = Mapping[str, Mapping[str, Step]]


def pin(recipe: Recipe) -> PinnedSources:
    """Sources whose identity says everything that was asked for."""
    data = [variant.calibration for variant in recipe.quantization.values()]
    model = Resolved(recipe.model.source, f"{recipe.model.source}@{recipe.model.revision}", WIDE)
    return PinnedSources(
        {model_name(recipe.model): PinnedModel(model, SHAPE)},
        {dataset_name(one): Resolved(one.dataset, f"{one.dataset}@{one.revision}/{one.split}", {}) for one in data},
        releases={release_name(cell): pin_release(*release_name(cell)) for cell in make_cells(recipe)},
    )


def pin_release(version: str, probe: str | None) -> PinnedRelease:
    """A release whose probe is as its name says."""
    digest = sha256_bytes(probe.encode()) if probe else None
    return PinnedRelease(Release.load(version), Path(probe) if probe else None, digest)


def expand(recipe: Recipe, facts: Facts) -> Cells:
    """The steps of every cell by stage; each cell is planned alone, so that names and order of cells are out of it."""
    sources, cells = pin(recipe), make_cells(recipe)
    return {
        cell.name: {step.stage: step for step in make_plan([cell], Path("r"), sources, facts, Options()).steps}
        for cell in cells
    }


def own_factors(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.factors.items() if name != "inputs"}


def follows(steps: Mapping[str, Step], moved: set[str]) -> set[str]:
    """The stages that moved, and everything that takes their keys."""
    found = set(moved)
    for stage in STAGES:
        inputs = steps[stage].inputs.values() if stage in steps else ()
        keys = {entry.key for entry in inputs if not entry.witness}
        if keys & {steps[name].key for name in found if name in steps}:
            found.add(stage)
    return found


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return make_facts(tmp_path_factory.mktemp("facts"))


@pytest.fixture(scope="module")
def baseline(facts: Facts) -> Cells:
    return expand(Recipe.model_validate(FULL), facts)


def concerns(path: problems.Path, cell: str) -> bool:
    """Whether a place of the full recipe is about a cell: its target, its variant, or all of them."""
    target, variant = cell.split("/")
    if path[0] == "engine":
        if isinstance(value_at(path, FULL), dict):
            return True  # Mappings merge.
        return value_at(("targets", target, *path), FULL) is None
    return {"targets": path[1:2] == (target,), "quantization": path[1:2] == (variant,)}.get(str(path[0]), True)


def is_refused(path: problems.Path, recipe: Recipe) -> bool:
    """Whether the value at a path is one that this version refuses; the planner does not have to know it."""
    refused = [place for place, _, _ in find_unavailable(recipe.model_dump(mode="json", by_alias=True))]
    return any(place[: len(path)] == path for place in refused)


def test_every_setting_of_a_recipe_file_has_a_declared_effect_and_no_row_is_stale() -> None:
    settings = {setting for setting in leaves(Document) if not setting.startswith("targets.*.engine.")}
    assert settings == set(EFFECTS)


def test_a_row_has_either_factors_or_a_reason() -> None:
    for row, effect in EFFECTS.items():
        assert bool(effect.factors or effect.whole) != bool(effect.reason), row


def test_the_recipe_that_is_changed_has_a_value_for_every_setting() -> None:
    assert [setting for setting in SETTINGS if not places(setting)] == []
    assert all(reason_of(setting) for setting in FIXED)
    assert {setting for setting in SETTINGS if reason_of(setting) == ONE_VALUE} <= set(FIXED)


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting not in FIXED])
def test_a_setting_moves_exactly_the_factors_it_declares(setting: str, facts: Facts, baseline: Cells) -> None:
    [(_, effect)] = rows_of(setting)
    seen: set[tuple[str, str]] = set()
    for path in places(setting):
        for recipe in flips(path):
            try:
                changed = expand(recipe, facts)
            except ValidationError:
                assert is_refused(path, recipe), f"{path} cannot be planned and is not refused"
                continue
            for cell in baseline.keys() & changed.keys():
                before, after = baseline[cell], changed[cell]
                rows = _declared_rows(effect, before, after)
                assert concerns(path, cell) or not rows, f"{path} changed {cell}, which it is not about"
                seen |= rows
                if not effect.whole:
                    _check_keys(before, after, {stage for stage, _ in rows})
    assert seen == {(stage, row) for stage, rows in effect.factors.items() for row in rows}


def _declared_rows(effect: Effect, before: Mapping[str, Step], after: Mapping[str, Step]) -> set[tuple[str, str]]:
    """The declared factors that moved; any other factor that moved is a failure."""
    found = set()
    # A setting may make a stage's step another one altogether, or none.
    assert before.keys() ^ after.keys() <= {*effect.whole, *(("dataset",) if effect.whole else ())}
    for stage in before.keys() & after.keys():
        for change in find_changes(own_factors(before[stage]), own_factors(after[stage])):
            rows = [row for row in effect.factors.get(stage, ()) if is_within(change.path, row)]
            assert rows or stage in effect.whole, f"{stage}: {change} is not declared"
            found |= {(stage, row) for row in rows}
    return found


def _check_keys(before: Mapping[str, Step], after: Mapping[str, Step], moved: set[str]) -> None:
    different = {stage for stage in before if before[stage].key != after[stage].key}
    assert different == follows(before, moved)


def test_settings_of_runners_reports_and_packages_move_no_engine() -> None:
    for setting in SETTINGS:
        if setting.split(".")[0] in ("runners", "package", "serving", "gates", "description", "name"):
            # What kind of runner it is decides on which machine an engine is measured.
            allowed = {"benchmark"} if setting == "runners.*.type" else {"package"}
            assert set(stages_of(setting)) <= allowed, setting
    assert stages_of("package.image") == ("package",)


def test_a_target_s_engine_has_the_effects_of_the_recipe_s() -> None:
    assert stages_of(("targets", "h100", "engine", "limits", "max_seq_len")) == ("build",)
    assert stages_of("targets.*.engine.dtype") == stages_of("engine.dtype") == ("convert", "build")


def test_a_section_has_the_effects_of_all_its_settings() -> None:
    assert stages_of("quantization.*.calibration") == ("dataset", "calibrate")
    assert reason_of("gates") == reason_of("gates.slo.*.max") != ""
    assert reason_of("engine") == ""


def test_factors_are_those_of_the_list_and_nothing_excluded_is_one(tmp_path: Path) -> None:
    for step in plan_of(tmp_path).steps:
        assert tuple(step.factors) == FACTORS
        moved = {path[0] for path in flatten(step.factors)}
        assert not {name.partition("step.")[2] for name in EXCLUDED} & moved


def test_everything_that_a_plan_holds_or_is_made_from_is_a_factor_or_excluded_with_a_reason() -> None:
    entering = {
        "step": {"stage", "key", "factors", "params", "inputs"},
        "plan": {"steps"},
        "options": set(),
        "facts": {"host", "versions", "pins", "compiler", "nvcc", "kernels", "own_code"},
        "host": {"cpu_model", "num_cpus"},
    }
    present = {
        f"{kind}.{field.name}"
        for kind, cls in (("step", Step), ("plan", Plan), ("options", Options), ("facts", Facts), ("host", Host))
        for field in fields(cls)
        if field.name not in entering[kind]
    }
    assert present | {"step.witnesses"} == set(EXCLUDED)
    assert all(EXCLUDED.values())


def test_what_is_excluded_of_the_machine_moves_no_key_and_the_rest_does(tmp_path: Path, facts: Facts) -> None:
    recipe = Recipe.model_validate(FULL)
    before = expand(recipe, facts)
    host = replace(facts.host, machine="riscv", cpu_flags=frozenset(), memory_bytes=1, driver="1", gpus_problem="none")
    elsewhere = replace(facts, host=host, python="/opt/python", cache_dir=tmp_path / "elsewhere")
    assert _keys(expand(recipe, elsewhere)) == _keys(before)
    for moved, stages in (
        (replace(facts, host=replace(facts.host, cpu_model="another")), {"benchmark", "package"}),
        (replace(facts, host=replace(facts.host, num_cpus=facts.host.num_cpus + 1)), {"benchmark", "package"}),
        (replace(facts, compiler="g++ 99"), {"build", "benchmark", "package"}),
        (replace(facts, kernels="others"), {"build", "benchmark", "package"}),
        (replace(facts, own_code="another"), {"package"}),
        (replace(facts, pins={"python": "3.99"}), {"package"}),
    ):
        after = expand(recipe, moved)
        assert {stage for cell in before for stage in before[cell] if _moved(before, after, cell, stage)} == stages


def _keys(cells: Cells) -> dict[tuple[str, str], str]:
    return {(cell, stage): step.key for cell, steps in cells.items() for stage, step in steps.items()}


def _moved(before: Cells, after: Cells, cell: str, stage: str) -> bool:
    return before[cell][stage].key != after[cell][stage].key


def test_every_factor_moves_the_key() -> None:
    params = ConvertParams(dtype="float32", tensor=1, pipeline=1)
    factors = make_factors(params, inputs={"a": "1"}, toolchain={"torch": "1"}, machine={"cpu": "x"})
    assert make_key(factors) == sha256_bytes(canonical_json(factors))
    moved = {make_key({**factors, name: "another"}) for name in FACTORS}
    assert len(moved | {make_key(factors)}) == len(FACTORS) + 1


def test_the_code_version_of_a_stage_is_a_factor(tmp_path: Path) -> None:
    for step in plan_of(tmp_path).steps:
        assert step.factors["code"] == PARAMS[step.stage].code_version


def test_identities_are_whole_digests_wherever_they_stand(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for step in plan.steps:
        job = step.job(plan)
        names = [step.key, job.key, Store(tmp_path).entry(step.key).name]
        names += [entry.key for entry in (*step.inputs.values(), *job.inputs.values())]
        names += step.factors["inputs"].values()
        assert all(re.fullmatch(r"[0-9a-f]{64}", name) for name in names)


def test_the_recorded_factors_of_a_step_are_at_most_a_few_kilobytes(tmp_path: Path) -> None:
    for step in plan_of(tmp_path).steps:
        assert len(canonical_json(step.factors)) < 4096


def test_changes_name_inputs_last_and_cut_long_values() -> None:
    old = {"params": {"a": 1, "b": [1, 2]}, "inputs": {"data": "0" * 64}, "machine": {}}
    new = {"params": {"a": 2, "b": [1, 2], "c": None}, "inputs": {"data": "f" * 64}, "machine": {"cpu": "x"}}
    assert [str(change) for change in find_changes(old, new)] == [
        "machine.cpu: (none) → x",
        "params.a: 1 → 2",
        "inputs.data: 000000000000… → ffffffffffff…",
    ]


def test_factors_flatten_to_values_by_path() -> None:
    assert flatten({"a": {"b.c": 1}, "d": {}}) == {("a", "b.c"): 1}
