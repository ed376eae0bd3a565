"""Two recipes are compared by what they mean for each engine, and two plans by the factors that moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from support.plans import edited, plan_of

from trtx.plan.diff import RecipeDiff, compare_plans, compare_recipes
from trtx.recipe.cells import select_cells
from trtx.recipe.load import LoadedRecipe, parse_recipe


def load(name: str, changes: dict[str, Any] | None = None, text: str | None = None) -> LoadedRecipe:
    return parse_recipe(Path(name), text or yaml.safe_dump(edited(changes or {}), sort_keys=False))


def compare(old: LoadedRecipe, new: LoadedRecipe, glob: str | None = None) -> RecipeDiff:
    return compare_recipes(old, new, select_cells(old.cells(), glob), select_cells(new.cells(), glob))


def test_defaults_order_comments_and_units_do_not_count() -> None:
    old = load("a.yaml", {"engine.kv_cache": {"size": "1GiB"}})
    spelled = edited({"engine.kv_cache": {"size": "1024MiB"}, "benchmark.repeats": 3, "serving": {"port": 8000}})
    text = "# the same\n" + yaml.safe_dump(spelled, sort_keys=True, default_flow_style=True)
    assert compare(old, load("b.yaml", text=text)).equal


def test_names_of_one_device_and_variants_left_out_mean_the_same() -> None:
    old = load("a.yaml", {"targets.cpu": {"gpu": "cpu"}})
    new = load("b.yaml", {"targets.cpu": {"gpu": "cpu-avx2", "quantization": ["int8", "fp32"]}})
    assert compare(old, new).equal


def test_requests_that_follow_from_the_levels_mean_the_same_when_they_are_stated() -> None:
    load_ = {"input_tokens": 8, "output_tokens": 8, "concurrency": [1, 2]}
    old = load("a.yaml", {"benchmark.workloads.chat": load_})
    assert compare(old, load("b.yaml", {"benchmark.workloads.chat": load_ | {"requests": 8}})).equal


def test_a_setting_moved_into_every_target_means_the_same() -> None:
    engine = {"kv_cache": {"tokens_per_block": 32}}
    old = load("a.yaml", {"engine.kv_cache": engine["kv_cache"]})
    assert compare(old, load("b.yaml", {"targets.cpu.engine": engine, "targets.fast.engine": engine})).equal


def test_a_difference_has_both_values_both_origins_and_its_cells() -> None:
    old, new = load("a.yaml"), load("b.yaml", {"targets.fast.engine": {"limits": {"max_batch_size": 2}}})
    (change,) = compare(old, new).changes
    assert str(change) == "engine.limits.max_batch_size: 4 → 2"
    assert change.cells == ("fast/int8",)
    assert change.old_origin.startswith("a.yaml:")
    assert change.new_origin.startswith("b.yaml:")
    assert int(change.new_origin.split(":")[1]) > int(change.old_origin.split(":")[1])


def test_a_difference_of_all_cells_is_one_change() -> None:
    diff = compare(load("a.yaml"), load("b.yaml", {"benchmark.repeats": 9}))
    (change,) = diff.changes
    assert change.cells == diff.cells
    assert change.old_origin == "default"


def test_a_setting_that_only_one_side_has_is_none_on_the_other() -> None:
    (change,) = compare(load("a.yaml"), load("b.yaml", {"package": {"image": "registry.example.com/x"}})).changes
    assert (change.name, change.old, change.new) == ("package.image", None, "registry.example.com/x")


def test_cells_of_one_side_are_added_or_removed() -> None:
    old, new = load("a.yaml"), load("b.yaml", {"targets.fast": None, "quantization.fp8": {"algorithm": "fp8"}})
    diff = compare(old, new)
    assert diff.added == ("cpu/fp8",)
    assert diff.removed == ("fast/int8",)
    assert diff.changes == ()
    assert not diff.equal


def test_a_selection_compares_its_cells_alone() -> None:
    new = load("b.yaml", {"quantization.int8": {"algorithm": "int8_sq"}})
    assert compare(load("a.yaml"), new, "*/fp32").equal
    assert not compare(load("a.yaml"), new, "*/int8").equal


def test_plans_say_which_factor_moved_each_key_or_which_input_it_follows(tmp_path: Path) -> None:
    diff = compare_plans(plan_of(tmp_path), plan_of(tmp_path, {"engine.limits.max_batch_size": 8}))
    changed = {change.step: change for change in diff.changed}
    assert [str(one) for one in changed["build/cpu/int8"].changes] == ["params.limits.max_batch_size: 4 → 8"]
    assert changed["benchmark/cpu/int8"].changes == ()
    assert changed["benchmark/cpu/int8"].inputs == ("build/cpu/int8",)
    assert "convert/cpu/int8" in diff.same


def test_plans_say_which_steps_only_one_of_them_has(tmp_path: Path) -> None:
    diff = compare_plans(plan_of(tmp_path), plan_of(tmp_path, {"benchmark": None}))
    assert diff.added == ()
    assert diff.removed == ("benchmark/cpu/fp32", "benchmark/cpu/int8", "benchmark/fast/int8")
    assert {change.step: change.inputs for change in diff.changed}["package/cpu/fp32"] == ("benchmark/cpu/fp32",)
    assert compare_plans(plan_of(tmp_path), plan_of(tmp_path)).equal


def with_matrix(values: list[int], tokens: int) -> str:
    axes = {"batch": {"path": "engine.limits.max_batch_size", "values": values}}
    changes = {"matrix": {"axes": axes}, "engine.limits.max_num_tokens": tokens}
    return yaml.safe_dump(edited(changes), sort_keys=False)


def test_a_step_that_cells_share_is_the_same_whichever_of_them_it_is_called_after(tmp_path: Path) -> None:
    twins = {"targets.twin": {"gpu": "cpu"}, "benchmark": None}
    diff = compare_plans(plan_of(tmp_path, twins), plan_of(tmp_path, twins, select="twin/*"))
    assert set(diff.removed) == {f"package/{cell}" for cell in ("cpu/fp32", "cpu/int8", "fast/int8")} | {
        "build/fast/int8"
    }
    assert diff.added == ()
    assert {"build/cpu/fp32", "convert/cpu/int8", "package/twin/fp32"} <= set(diff.same)


def test_recipes_with_a_matrix_are_compared_cell_by_cell() -> None:
    old, new = load("a.yaml", text=with_matrix([2, 4], 256)), load("b.yaml", text=with_matrix([4, 8], 512))
    diff = compare(old, new, "cpu/fp32*")
    assert diff.cells == ("cpu/fp32/batch-4",)
    assert (diff.removed, diff.added) == (("cpu/fp32/batch-2",), ("cpu/fp32/batch-8",))
    assert [str(change) for change in diff.changes] == ["engine.limits.max_num_tokens: 256 → 512"]


def test_a_variable_and_the_value_it_has_mean_the_same() -> None:
    new = edited({"vars": {"batch": 4}, "engine.limits.max_batch_size": "${vars.batch}"})
    assert compare(load("a.yaml"), load("b.yaml", text=yaml.safe_dump(new))).equal
