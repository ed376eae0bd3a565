"""A matrix multiplies the cells that its axes can change, and every point of it is a recipe of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.composition import Folder
from support.malformed import recipe

from trtx.recipe.load import LoadedRecipe
from trtx.recipe.matrix import slug

TARGETS = "targets:\n  big: {gpu: cpu}\n  small: {gpu: cpu, quantization: [int8]}\n"
BATCH = "    batch: {path: engine.limits.max_batch_size, values: [4, 8]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def matrix(axes: str, rest: str = "", **sections: str) -> str:
    return recipe(**{"targets": TARGETS, **sections}) + f"matrix:\n  axes:\n{axes}{rest}"


def names(loaded: LoadedRecipe) -> list[str]:
    return [cell.name for cell in loaded.cells()]


def test_an_axis_of_everything_multiplies_every_cell(folder: Folder) -> None:
    loaded = folder.load(matrix(BATCH))
    assert names(loaded) == [
        "big/fp32/batch-4",
        "big/fp32/batch-8",
        "big/int8/batch-4",
        "big/int8/batch-8",
        "small/int8/batch-4",
        "small/int8/batch-8",
    ]
    assert [cell.recipe.engine.limits.max_batch_size for cell in loaded.cells()] == [4, 8] * 3
    assert len(loaded.points) == 2
    assert loaded.recipe is loaded.points[0].recipe


def test_an_axis_of_one_target_or_variant_multiplies_its_cells_only(folder: Folder) -> None:
    axes = (
        "    b: {path: targets.small.engine.limits.max_batch_size, values: [4, 8]}\n"
        "    rows: {path: quantization.fp32.calibration.samples, values: {few: 8, many: 64}}\n"
    )
    loaded = folder.load(matrix(axes))
    assert names(loaded) == [
        "big/fp32/rows-few",
        "big/fp32/rows-many",
        "big/int8",
        "small/int8/b-4",
        "small/int8/b-8",
    ]
    sections = {choice.axis: choice.sections for cell in loaded.cells() for choice in cell.choices}
    assert sections == {"b": {"targets"}, "rows": {"quantization"}}


def test_an_axis_of_a_variable_multiplies_the_cells_that_use_it(folder: Folder) -> None:
    text = matrix(
        "    size: {path: vars.size, values: [128, 256]}\n",
        targets="targets:\n  big: {gpu: cpu, engine: {limits: {max_seq_len: '${vars.twice}'}}}\n  small: {gpu: cpu}\n",
        extra="vars: {twice: '${vars.size}'}\n",
    )
    loaded = folder.load(text)
    assert names(loaded) == [
        "big/fp32/size-128",
        "big/fp32/size-256",
        "big/int8/size-128",
        "big/int8/size-256",
        "small/fp32",
        "small/int8",
    ]
    place = loaded.cells()[1].recipe.targets["big"].engine.limits.max_seq_len
    assert place == 256


def test_a_variable_in_a_default_is_used_there(folder: Folder) -> None:
    loaded = folder.load(
        matrix("    p: {path: vars.p, values: [1, 2]}\n", serving="serving: {port: '${env.P:-${vars.p}}'}\n")
    )
    assert [cell.recipe.serving.port for cell in loaded.cells()] == [1, 2] * 3


def test_an_axis_can_change_which_variants_a_target_builds(folder: Folder) -> None:
    axes = "    set: {path: targets.small.quantization, values: {one: [int8], both: [fp32, int8]}}\n"
    assert names(folder.load(matrix(axes))) == [
        "big/fp32",
        "big/int8",
        "small/int8/set-one",
        "small/int8/set-both",
        "small/fp32/set-both",
    ]


def test_names_do_not_depend_on_the_order_of_axes_and_values(folder: Folder) -> None:
    other = "    a: {path: serving.port, values: [1, 2]}\n"
    one = folder.load(matrix(BATCH + other))
    two = folder.load(matrix(other.replace("[1, 2]", "[2, 1]") + BATCH))
    assert sorted(names(one)) == sorted(names(two))
    assert "big/fp32/a-1_batch-4" in names(one)


def test_excluded_cells_are_not_built_and_not_checked(folder: Folder) -> None:
    sections = {"engine": "engine: {limits: {max_num_tokens: 512, max_seq_len: 256}}\n"}
    axes = "    batch: {path: engine.limits.max_batch_size, values: [8, 1024]}\n"
    assert "max_num_tokens 512 is less than max_batch_size 1024" in folder.refused(matrix(axes, **sections))
    targets = TARGETS.replace("cpu, quantization", "cpu, engine: {limits: {max_num_tokens: 2048}}, quantization")
    rest = "  exclude: [{batch: 1024, target: 'b*'}]\n"
    loaded = folder.load(matrix(axes, rest, **sections | {"targets": targets}))
    assert names(loaded) == ["big/fp32/batch-8", "big/int8/batch-8", "small/int8/batch-8", "small/int8/batch-1024"]


def test_an_exclusion_names_values_by_name_or_as_they_are(folder: Folder) -> None:
    axes = BATCH + "    kv: {path: engine.kv_cache.size, values: {little: 1GiB, much: 2GiB}}\n"
    rest = "  exclude: [{batch: 4, kv: 1GiB}, {batch: '8', kv: much}, {variant: fp*}]\n"
    assert names(folder.load(matrix(axes, rest))) == [
        "big/int8/batch-4_kv-much",
        "big/int8/batch-8_kv-little",
        "small/int8/batch-4_kv-much",
        "small/int8/batch-8_kv-little",
    ]


def test_values_come_from_the_matrix_and_say_so(folder: Folder) -> None:
    text = matrix(BATCH + "    p: {path: vars.p, values: {a: '${env.P}'}}\n", serving="serving: {port: '${vars.p}'}\n")
    loaded = folder.load(text, env={"P": "80"})
    last = loaded.points[-1]
    assert folder.origin(last, "engine", "limits", "max_batch_size") == "recipe.yaml:15:61, axis batch"
    assert last.origin(("engine", "limits", "max_batch_size")).kind == "matrix"
    assert loaded.recipe.serving.port == 80


def test_a_matrix_is_changed_and_removed_from_the_command_line(folder: Folder) -> None:
    text = matrix(BATCH)
    assert len(folder.load(text, set=("matrix.axes.batch.values=[1, 2, 4]",)).cells()) == 9
    assert len(folder.load(text, unset=("matrix",)).cells()) == 3


def test_a_problem_of_many_points_is_said_once(folder: Folder) -> None:
    shown = folder.refused(matrix(BATCH, serving="serving: {port: 0}\n"))
    assert shown.endswith(f"error: 1 problem in {folder.path}/recipe.yaml")


def test_a_variant_used_at_one_point_is_used(folder: Folder) -> None:
    axes = "    v: {path: targets.cpu.quantization, values: {a: [fp32], b: [int8]}}\n"
    loaded = folder.load(matrix(axes, targets="targets: {cpu: {gpu: cpu}}\n"))
    assert loaded.warnings == ()
    assert names(loaded) == ["cpu/fp32/v-a", "cpu/int8/v-b"]


@pytest.mark.parametrize(
    ("value", "name"),
    [(0.9, "0.9"), ("2GiB", "2gib"), (True, "true"), ("hf://Meta/Llama-3.1", "hf-meta-llama-3.1"), (-1, "1")],
)
def test_scalars_are_named_after_themselves(value: object, name: str) -> None:
    assert slug(value) == name


def test_a_thousand_points_load_in_a_moment(folder: Folder) -> None:
    axes = "".join(
        f"    {axis}: {{path: {path}, values: {list(range(first, first + 10))}}}\n"
        for axis, path, first in (
            ("a", "engine.limits.max_batch_size", 1),
            ("b", "engine.limits.max_num_tokens", 256),
            ("c", "serving.port", 1),
        )
    )
    started = time.perf_counter()
    loaded = folder.load(matrix(axes))
    assert len(loaded.points) == 1000
    assert len(loaded.cells()) == 3000
    assert all(loaded.point_of(cell).recipe is cell.recipe for cell in loaded.cells())
    assert time.perf_counter() - started < 3
