"""Cells, pins, facts and manifests → the lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.plans import edited, find_version, make_facts, pin

from trtx.cache.manifest import FileRecord, Manifest
from trtx.errors import UsageProblem, VerificationFailed
from trtx.hardware.versions import installed_version
from trtx.plan.facts import own_code_digest, read_driver_version
from trtx.plan.lock import Lock
from trtx.plan.lock_make import is_told, list_local_steps, make_lock, without
from trtx.plan.make import Options, make_plan
from trtx.plan.steps import Plan
from trtx.recipe.cells import make_cells, select_cells
from trtx.recipe.schema import Recipe
from trtx.stages.params import PARAMS

OTHER = "f" * 64
CHOICES = {"settings": {"max_autotune": False}, "decode": {"kernels": 3}}


class World:
    """A recipe, what it is pinned to, and what the cache has."""

    def __init__(self, folder: Path, changes: dict[str, Any] | None = None, select: str | None = None) -> None:
        recipe = Recipe.model_validate(edited(changes or {}))
        self.cells = select_cells(make_cells(recipe), select)
        self.sources, self.facts = pin(recipe, "commit"), make_facts(folder)
        self.plan = make_plan(self.cells, Path("recipe.yaml"), self.sources, self.facts, Options())
        self.whole = select is None

    def lock(self, old: Lock | None = None, manifests: Mapping[str, Manifest] | None = None) -> Lock:
        known = manifests or {}
        return make_lock(old, self.cells, self.sources, self.facts, self.plan, known, whole=self.whole)

    def manifests(self, sha256: str = "a" * 64) -> dict[str, Manifest]:
        """What every step that tells something leaves."""
        rows = {"calibration_rows": 4, "heldout_rows": 2, "rows": {"calibration": "0-3"}}
        summaries = {"download": {}, "dataset": rows, "build": {"choices": CHOICES}}
        return {
            step.id: Manifest(
                step.key, step.id, step.stage, step.factors, (FileRecord("file", 7, sha256),), {}, summaries[step.stage]
            )
            for step in self.plan.steps
            if step.stage in summaries
        }


def stage_steps(plan: Plan, *stages: str) -> set[str]:
    return {step.id for step in plan.steps if step.stage in stages}


def test_a_lock_has_pins_tools_code_versions_and_the_key_of_every_step(tmp_path: Path) -> None:
    world = World(tmp_path)
    lock = world.lock()
    assert lock.models["demo://tiny-llama@main"].identity == "commit"
    assert lock.entries == {step.id: step.key for step in world.plan.steps}
    assert lock.stages == {stage: params.code_version for stage, params in PARAMS.items()}
    assert lock.runners["local"].compiler == find_version("c++")
    assert lock.runners["local"].distributions["torch"] == installed_version("torch")
    assert lock.builds == {} and not lock.models["demo://tiny-llama@main"].files


def test_what_ran_tells_files_rows_and_compile_choices(tmp_path: Path) -> None:
    world = World(tmp_path)
    lock = world.lock(manifests=world.manifests())
    assert lock.models["demo://tiny-llama@main"].files["file"].bytes == 7
    (draw,) = lock.datasets["demo://docs@main#train"].draws.values()
    assert (draw.rows["calibration"].numbers, draw.rows["heldout"].numbers) == ("0-3", None)
    assert set(lock.builds) == stage_steps(world.plan, "build")
    assert lock.builds["build/cpu/fp32"].choices == CHOICES


def test_what_was_known_stays_when_the_cache_is_empty(tmp_path: Path) -> None:
    world = World(tmp_path)
    full = world.lock(manifests=world.manifests())
    assert world.lock(full) == full


def test_what_was_known_of_something_else_goes(tmp_path: Path) -> None:
    world = World(tmp_path)
    full = world.lock(manifests=world.manifests())
    moved = World(tmp_path, {"engine.limits.max_batch_size": 5, "quantization.fp32.calibration": {"seed": 9}})
    lock = moved.lock(full)
    assert lock.builds == {}
    assert set(lock.datasets["demo://docs@main#train"].draws) == {"text, 512+32 rows, seed 7"}


def test_rows_of_an_older_dataset_stage_are_not_believed(tmp_path: Path) -> None:
    world = World(tmp_path)
    old = world.lock(manifests=world.manifests()).model_copy(update={"stages": {"dataset": 0}})
    assert world.lock(old).datasets["demo://docs@main#train"].draws == {}


def test_a_part_of_a_recipe_changes_its_own_facts_only(tmp_path: Path) -> None:
    whole = World(tmp_path)
    full = whole.lock(manifests=whole.manifests())
    part = World(tmp_path, {"engine.limits.max_batch_size": 5}, select="fast/*")
    lock = part.lock(full, part.manifests())
    changed = {step for step, key in full.entries.items() if lock.entries[step] != key}
    assert changed == {"build/fast/int8", "benchmark/fast/int8", "package/fast/int8"}
    assert lock.builds["build/cpu/fp32"] == full.builds["build/cpu/fp32"]
    assert World(tmp_path, select="cpu/*").lock(full) == full


def test_a_part_whose_build_is_called_otherwise_in_the_whole_changes_nothing(tmp_path: Path) -> None:
    twins = {"targets.twin": {"gpu": "cpu"}}
    whole, part = World(tmp_path, twins), World(tmp_path, twins, select="twin/*")
    full = whole.lock(manifests=whole.manifests())
    assert "build/twin/int8" in part.manifests() and "build/twin/int8" not in full.builds
    assert part.lock(full, part.manifests()) == full
    assert part.lock(full) == full


def test_fetched_files_that_are_others_now_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    full = world.lock(manifests=world.manifests())
    with pytest.raises(VerificationFailed, match="file is not the file that the lock names"):
        world.lock(full, {"download/model": world.manifests(OTHER)["download/model"]})
    with pytest.raises(VerificationFailed, match="dataset demo://docs@main#train"):
        world.lock(full, {"download/docs": world.manifests(OTHER)["download/docs"]})


def test_steps_that_differ_from_machine_to_machine_are_known(tmp_path: Path) -> None:
    plan = World(tmp_path).plan
    assert list_local_steps(plan) == stage_steps(plan, "benchmark", "package")
    folder = World(tmp_path, {"model.source": "file:///models/mine"}).plan
    assert list_local_steps(folder) == stage_steps(folder, "download", "calibrate", "convert", "benchmark", "package")


def test_a_step_is_told_when_its_facts_are_in_the_lock(tmp_path: Path) -> None:
    world = World(tmp_path)
    steps = [step for step in world.plan.steps if step.stage in ("download", "dataset")]
    assert [is_told(world.lock(), step) for step in steps] == [False] * len(steps)
    assert [is_told(world.lock(manifests=world.manifests()), step) for step in steps] == [True] * len(steps)


def test_the_image_of_triton_is_pinned_where_it_is_built_on(tmp_path: Path) -> None:
    python, triton = "docker.io/library/python:3.12-slim-bookworm", "nvcr.io/nvidia/tritonserver:25.08-py3"
    assert World(tmp_path).lock().containers.keys() == {python}
    world = World(tmp_path, {"package.emit": ["compose", "triton"]})
    assert world.lock().containers.keys() == {python, triton}
    digest = f"{triton}@sha256:{'0' * 64}"
    sources = replace(world.sources, images={triton: digest})
    plan = make_plan(world.cells, Path("recipe.yaml"), sources, world.facts, Options())
    (params,) = {step.params["triton_base"] for step in plan.steps if step.stage == "package"}
    assert params == digest
    assert {step.params["triton_base"] for step in World(tmp_path).plan.steps if step.stage == "package"} == {None}


@pytest.mark.parametrize(
    ("names", "left"),
    [
        ((), (1, 1, 1)),
        (("model",), (0, 1, 1)),
        (("dataset", "container"), (1, 0, 0)),
        (("all",), (0, 0, 0)),
        (("demo://tiny-llama",), (0, 1, 1)),
        (("demo://tiny-llama@main",), (0, 1, 1)),
        (("docker.io/library/python:3.12-slim-bookworm",), (1, 1, 0)),
    ],
)
def test_pins_to_look_up_anew_are_left_out(tmp_path: Path, names: tuple[str, ...], left: tuple[int, ...]) -> None:
    lock = without(World(tmp_path).lock(), names)
    assert (len(lock.models), len(lock.datasets), len(lock.containers)) == left


@pytest.mark.parametrize("name", ["build", "build/cpu/fp32", "all"])
def test_what_builds_measured_is_forgotten_on_demand_and_other_builds_are_not(tmp_path: Path, name: str) -> None:
    world = World(tmp_path)
    lock = world.lock(manifests=world.manifests())
    left = set(without(lock, [name]).builds)
    assert left == (set(lock.builds) - {name} if "/" in name else set())


def test_an_unknown_pin_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="no pin 'datasets'") as caught:
        without(World(tmp_path).lock(), ["datasets"])
    assert caught.value.fix == "did you mean 'dataset'?"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)", "570.86.15"),
        ("something else", None),
    ],
)
def test_the_drivers_version_is_read_from_the_kernel(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert read_driver_version(tmp_path / "version") == version
    assert read_driver_version(tmp_path / "absent") is None


def test_a_lock_beside_trtxs_own_recipes_is_none_of_its_code() -> None:
    before = own_code_digest()
    lock = Path(__file__).parents[3] / "recipes" / "of-a-test.lock.yaml"
    try:
        lock.write_text("")
        assert own_code_digest() == before
    finally:
        lock.unlink()
