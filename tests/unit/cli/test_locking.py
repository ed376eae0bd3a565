"""How verbs keep the lock beside a recipe up to date, and what happens when they cannot."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.plans import edited

from trtx.cli.locking import check_lock, kept_lock, make_current_lock, plan_whole, renew_lock
from trtx.cli.options import StageName
from trtx.cli.prepare import Prepared, Request, prepare
from trtx.console import Console
from trtx.errors import LockOutOfDate
from trtx.plan.lock import Lock, LockedBuild, dump_lock, read_lock, write_lock
from trtx.recipe.overrides import Overrides


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a recipe that needs no network."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "cache"))
    (project / "recipe.yaml").write_text(yaml.safe_dump(edited({})))
    return project


@pytest.fixture
def console() -> Console:
    return Console(io.StringIO(), io.StringIO(), color=False, verbosity=0)


def said(console: Console) -> str:
    assert isinstance(console.err, io.StringIO)
    return console.err.getvalue()


def prepare_it(console: Console, **request: object) -> Prepared:
    return prepare(console, Request("recipe.yaml", until=StageName.DATASET, **request))  # type: ignore[arg-type]


def test_the_lock_is_written_once_and_then_only_when_it_changes(folder: Path, console: Console) -> None:
    with kept_lock(console, prepare_it(console)):
        assert not (folder / "recipe.lock.yaml").exists()
    assert "wrote recipe.lock.yaml" in said(console)
    before = (folder / "recipe.lock.yaml").stat()
    with kept_lock(console, prepare_it(console)):
        pass
    assert (folder / "recipe.lock.yaml").stat().st_ino == before.st_ino
    check_lock(prepare_it(console, locked=True))


def test_what_is_known_is_locked_when_a_run_fails(folder: Path, console: Console) -> None:
    with pytest.raises(RuntimeError), kept_lock(console, prepare_it(console)):
        raise RuntimeError
    assert read_lock(folder / "recipe.lock.yaml") is not None


def test_a_second_trouble_does_not_hide_the_first(folder: Path, console: Console) -> None:
    prepared = prepare_it(console)
    with pytest.raises(RuntimeError) as caught, kept_lock(console, prepared):
        (folder / "recipe.lock.yaml").write_text("{")
        raise RuntimeError
    assert "recipe.lock.yaml cannot be read" in caught.value.__notes__[0]


def test_what_an_engine_measured_stays_locked_until_it_is_upgraded(folder: Path, console: Console) -> None:
    prepared = prepare_it(console)
    build = plan_whole(prepared).step("build/cpu/fp32")
    choices = {"products": {"bf16 16 4096 1024": "00ff"}}
    locked = {build.id: LockedBuild(arch="x86-64-v3", key=build.key, choices=choices)}
    write_lock(folder / "recipe.lock.yaml", make_current_lock(prepared).model_copy(update={"builds": locked}))
    again = prepare_it(console)
    assert make_current_lock(again).builds == locked
    assert plan_whole(again).step(build.id).choices == choices
    upgraded = prepare_it(console, upgrade=("build",))
    assert make_current_lock(upgraded).builds == {}
    assert plan_whole(upgraded).step(build.id).choices == {}


@pytest.mark.parametrize("request_for", [{"locked": True}, {"overrides": Overrides(set=("name=other",))}])
def test_locked_and_changed_settings_leave_the_lock_alone(
    folder: Path, console: Console, request_for: dict[str, object]
) -> None:
    with kept_lock(console, prepare_it(console, **request_for)):
        pass
    assert not (folder / "recipe.lock.yaml").exists()


def test_a_lock_that_somebody_else_renewed_meanwhile_is_left_as_it_is(folder: Path, console: Console) -> None:
    prepared = prepare_it(console)
    write_lock(folder / "recipe.lock.yaml", Lock())
    renew_lock(console, prepared)
    assert "was changed by something else meanwhile" in said(console)
    assert read_lock(folder / "recipe.lock.yaml") == Lock()


@pytest.fixture
def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    monkeypatch.chdir(folder)  # The working folder was the one below the mount.
    yield folder
    monkeypatch.chdir(folder.parent)
    subprocess.run(["umount", folder], check=True)


def test_a_lock_that_cannot_be_written_is_a_warning(read_only: Path, console: Console) -> None:
    renew_lock(console, prepare_it(console))
    assert "the lock was not written" in said(console)
    assert "read-only" in said(console)
    assert [path.name for path in read_only.iterdir()] == ["recipe.yaml"]


def test_locked_names_every_difference(folder: Path, console: Console) -> None:
    with pytest.raises(LockOutOfDate, match="there is no lock"):
        check_lock(prepare_it(console, locked=True))
    lock = make_current_lock(prepare_it(console))
    stale = lock.model_copy(update={"stages": {**lock.stages, "calibrate": 0, "build": 0}})
    (folder / "recipe.lock.yaml").write_text(dump_lock(stale))
    with pytest.raises(LockOutOfDate, match="is out of date: 2 differences") as caught:
        check_lock(prepare_it(console, locked=True))
    assert [line.strip().partition(": code")[0] for line in caught.value.why.splitlines()] == [
        "stage build",
        "stage calibrate",
    ]
