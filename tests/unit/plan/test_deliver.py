"""Packages are put where people look for them, and what people did there is respected."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.plans import plan_of

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem
from trtx.files import link_or_copy
from trtx.plan.deliver import LINK_FROM_BYTES, deliver
from trtx.plan.steps import Plan

WEIGHTS = b"w" * LINK_FROM_BYTES


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, select="cpu/fp32")


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    """A cache that holds the package."""
    made = Store(tmp_path / "cache")
    made.prepare()
    publish(made, plan)
    return made


def publish(store: Store, plan: Plan) -> None:
    step = plan.step("package/cpu/fp32")
    with store.stage(step.key) as folder:
        (folder / "output" / "engine").mkdir()
        (folder / "output" / "engine" / "weights").write_bytes(WEIGHTS)
        (folder / "output" / "run.sh").write_text("#!/bin/sh\n")
        (folder / "output" / "run.sh").chmod(0o755)
        store.publish(folder, Manifest(step.key, step.id, step.stage, step.factors, (), {}, {}))


def test_large_files_are_linked_read_only_and_small_ones_copied_to_be_edited(
    tmp_path: Path, plan: Plan, store: Store
) -> None:
    (delivered,) = deliver(plan, store, tmp_path / "out")
    assert delivered.folder == tmp_path / "out" / "tiny" / "cpu" / "fp32"
    entry = store.output(plan.step("package/cpu/fp32").key)
    assert (delivered.engine / "weights").stat().st_ino == (entry / "engine" / "weights").stat().st_ino
    script = delivered.folder / "run.sh"
    assert script.stat().st_ino != (entry / "run.sh").stat().st_ino
    assert script.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_holds_its_package_is_not_touched(tmp_path: Path, plan: Plan, store: Store) -> None:
    (delivered,) = deliver(plan, store, tmp_path / "out")
    (delivered.folder / "run.sh").write_text("edited")
    deliver(plan, store, tmp_path / "out")
    assert (delivered.folder / "run.sh").read_text() == "edited"


def test_a_package_that_was_remade_replaces_its_folder(tmp_path: Path, plan: Plan, store: Store) -> None:
    (delivered,) = deliver(plan, store, tmp_path / "out")
    (delivered.folder / "run.sh").write_text("edited")
    deliver(plan, store, tmp_path / "out", remade={"package/cpu/fp32"})
    assert (delivered.folder / "run.sh").read_text() == "#!/bin/sh\n"
    assert sorted(path.name for path in delivered.folder.parent.iterdir()) == [".fp32.key", "fp32"]


def test_what_a_killed_delivery_left_is_removed_by_the_next(tmp_path: Path, plan: Plan, store: Store) -> None:
    parent = tmp_path / "out" / "tiny" / "cpu"
    for name in (".fp32.0123abcd", ".fp32.0123abcd.old", ".fp32.notours"):
        (parent / name).mkdir(parents=True)
        (parent / name / "weights").write_bytes(b"half")
    deliver(plan, store, tmp_path / "out")
    assert sorted(path.name for path in parent.iterdir()) == [".fp32.key", ".fp32.notours", "fp32"]


def test_a_folder_that_trtx_did_not_make_is_refused_and_kept(tmp_path: Path, plan: Plan, store: Store) -> None:
    mine = tmp_path / "out" / "tiny" / "cpu" / "fp32" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(EnvironmentProblem, match="cannot put the package"):
        deliver(plan, store, tmp_path / "out")
    assert mine.read_text() == "precious"


def test_looking_again_after_a_delivery_reads_nothing(
    tmp_path: Path, plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(plan, store, tmp_path / "out")
    read: list[Path] = []
    monkeypatch.setattr("trtx.cache.digests.hash_file", lambda path, _advance: read.append(path) or "")
    assert store.find(plan.step("package/cpu/fp32").key).manifest is not None
    assert read == []


def test_nor_does_looking_at_the_entry_that_the_package_has_its_weights_from(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = plan.step("package/cpu/fp32")
    weights = plan.step(package.inputs["weights"].step)
    store = Store(tmp_path / "linked")
    store.prepare()
    with store.stage(weights.key) as folder:
        (folder / "output").mkdir(exist_ok=True)
        (folder / "output" / "rank0.safetensors").write_bytes(WEIGHTS)
        store.publish(folder, Manifest(weights.key, weights.id, weights.stage, weights.factors, (), {}, {}))
    with store.stage(package.key) as folder:
        (folder / "output" / "engine").mkdir(parents=True)
        link_or_copy(store.output(weights.key) / "rank0.safetensors", folder / "output" / "engine" / "weights")
        store.publish(folder, Manifest(package.key, package.id, package.stage, package.factors, (), {}, {}))
    store.accept_links(weights.key)
    deliver(plan, store, tmp_path / "out")
    read: list[Path] = []
    monkeypatch.setattr("trtx.cache.digests.hash_file", lambda path, _advance: read.append(path) or "")
    assert store.find(weights.key).manifest is not None
    assert store.find(package.key).manifest is not None
    assert read == []
