"""A recipe becomes the right steps, and each key moves with exactly what its step's bytes depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.plans import keys, plan_of

from trtx.errors import UsageProblem
from trtx.files import canonical_json, sha256_bytes
from trtx.plan.make import Options
from trtx.plan.steps import load_plan, split_selection
from trtx.plan.why import choose_steps


def moved(tmp_path: Path, changes: dict[str, Any] | None = None, **world: Any) -> set[str]:
    """Stages/cells whose keys differ from the unedited recipe's."""
    before, after = keys(plan_of(tmp_path)), keys(plan_of(tmp_path, changes, **world))
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def stages(names: set[str]) -> set[str]:
    return {name.split("/")[0] for name in names}


def test_a_recipe_expands_into_the_steps_of_every_cell(tmp_path: Path) -> None:
    assert [step.id for step in plan_of(tmp_path).steps] == [
        "download/model",
        "download/docs",
        "calibrate/fp32",
        "convert/cpu/fp32",
        "build/cpu/fp32",
        "benchmark/cpu/fp32",
        "package/cpu/fp32",
        "calibrate/int8",
        "convert/cpu/int8",
        "build/cpu/int8",
        "benchmark/cpu/int8",
        "package/cpu/int8",
        "build/fast/int8",
        "benchmark/fast/int8",
        "package/fast/int8",
    ]


def test_targets_share_one_checkpoint_and_one_conversion(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.step("build/fast/int8").inputs["checkpoint"].step == "calibrate/int8"
    assert plan.step("benchmark/fast/int8").inputs["weights"].step == "convert/cpu/int8"


def test_a_shared_step_is_found_by_the_name_that_each_of_its_cells_has_for_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    shared = plan.step("convert/cpu/int8")
    assert plan.step("convert/fast/int8") == shared
    assert shared.names == ("convert/cpu/int8", "convert/fast/int8")
    assert [step.id for step in choose_steps(plan, "convert/fast/*")] == ["convert/cpu/int8"]
    with pytest.raises(UsageProblem) as caught:
        plan.step("convert/fest/int8")
    assert caught.value.fix == "did you mean 'convert/fast/int8'?"


def test_a_step_comes_after_its_inputs(tmp_path: Path) -> None:
    seen: set[str] = set()
    for step in plan_of(tmp_path).steps:
        assert {entry.step for entry in step.inputs.values()} <= seen
        seen.add(step.id)


def test_keys_are_the_full_digest_of_the_recorded_factors(tmp_path: Path) -> None:
    for step in plan_of(tmp_path).steps:
        assert step.key == sha256_bytes(canonical_json(step.factors))
        assert len(step.key) == 64


def test_limits_move_build_and_what_follows_but_no_weights(tmp_path: Path) -> None:
    assert stages(moved(tmp_path, {"engine.limits.max_batch_size": 8})) == {"build", "benchmark", "package"}


def test_other_weights_of_the_same_shape_move_no_build(tmp_path: Path) -> None:
    fine_tune = moved(tmp_path, identity="seed=1")
    assert stages(fine_tune) == {"download", "calibrate", "convert", "benchmark", "package"}
    assert "download/docs" not in fine_tune


def test_another_shape_moves_the_build(tmp_path: Path) -> None:
    assert "build" in stages(moved(tmp_path, num_hidden_layers=3))


def test_calibration_data_moves_no_build(tmp_path: Path) -> None:
    changes = {"quantization.int8.calibration": {"samples": 16}}
    assert moved(tmp_path, changes) == {
        "calibrate/int8",
        "convert/cpu/int8",
        "benchmark/cpu/int8",
        "package/cpu/int8",
        "benchmark/fast/int8",
        "package/fast/int8",
    }


def test_the_compiler_s_torch_moves_builds_and_the_quantizer_moves_calibrations(tmp_path: Path) -> None:
    quantizer = moved(tmp_path, versions={"nvidia-modelopt": "2.0"})
    assert {"calibrate/int8", "convert/cpu/int8"} <= quantizer
    assert "build" not in stages(quantizer)
    assert "build" in stages(moved(tmp_path, versions={"torch": "2.0"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "other words"},
        {"runners": {"here": {"type": "local"}}},
        {"targets.cpu.runner": "local"},
    ],
)
def test_what_only_says_where_and_how_steps_run_moves_no_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert moved(tmp_path, changes) == set()


def test_serving_and_package_settings_move_only_packages(tmp_path: Path) -> None:
    assert stages(moved(tmp_path, {"serving": {"port": 9000}})) == {"package"}
    assert stages(moved(tmp_path, {"package": {"image": "registry.example.com/tiny"}})) == {"package"}


def test_benchmark_settings_move_benchmarks_and_the_packages_that_carry_them(tmp_path: Path) -> None:
    assert stages(moved(tmp_path, {"benchmark.repeats": 5})) == {"benchmark", "package"}


def test_parallelism_and_thread_counts_move_no_key(tmp_path: Path) -> None:
    assert moved(tmp_path, options=Options(max_parallel=7)) == set()


def test_without_a_benchmark_packages_come_from_builds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"benchmark": None})
    assert "benchmark" not in {step.stage for step in plan.steps}
    assert "benchmark" not in plan.step("package/cpu/fp32").inputs


def test_a_selection_plans_only_its_cells(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, select="*/fp32")
    assert plan.cells == ("cpu/fp32",)
    assert {step.cell for step in plan.steps} == {None, "cpu/fp32"}


def test_a_selection_of_nothing_names_the_nearest_cell(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="no cell") as caught:
        plan_of(tmp_path, select="cpu/int4")
    assert "cpu/int8" in caught.value.fix


def test_until_ends_the_plan_at_a_stage(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, options=Options(until="convert"))
    assert {step.stage for step in plan.steps} == {"download", "dataset", "calibrate", "convert"}


def test_a_plan_survives_json(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert load_plan(json.loads(json.dumps(plan.to_json()))) == plan


def test_secrets_are_passed_by_name_to_steps_that_fetch_and_to_no_others(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert "HF_TOKEN" in plan.step("download/model").inherit
    assert "HF_TOKEN" not in plan.step("calibrate/int8").inherit
    assert plan.step("calibrate/int8").environment["HF_HUB_OFFLINE"] == "1"


def test_a_plan_splits_off_the_cells_behind_a_recipe(tmp_path: Path) -> None:
    assert split_selection("recipe.yaml:cpu/*") == (Path("recipe.yaml"), "cpu/*")
    assert split_selection("recipe.yaml") == (Path("recipe.yaml"), None)
    odd = tmp_path / "a:b.yaml"
    odd.touch()
    assert split_selection(str(odd)) == (odd, None)
