"""The verbs of `trtx cache`: JSON for tools, tables for people, words instead of full keys."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.entries import key_of, make_store, publish_entry, set_last_use
from support.plans import plan_of
from support.steps import corrupt

from trtx.cache.layout import LAYOUT_VERSION
from trtx.cache.runs import end_run, note_run
from trtx.cache.store import Store
from trtx.cli.main import main
from trtx.kernels.shelf import put
from trtx.plan.record import create_run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A cache with three entries, unused for 40, 20 and 0 days, and an empty project to stand in."""
    store = make_store(tmp_path / "cache")
    steps = ("build/cpu/fp32", "build/cpu/int8", "package/cpu/fp32")
    for number, (step, days) in enumerate(zip(steps, (40, 20, 0), strict=True)):
        files = {"a.bin": bytes(1000 * (number + 1))}
        publish_entry(store, key_of(number), files, step=step, recipe=f"recipe-{number % 2}", started=1000.0 + number)
        set_last_use(store, key_of(number), days)
    monkeypatch.setenv("TRTX_CACHE_DIR", str(store.root))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return store


class Trtx:
    """Runs `trtx cache …` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        assert main(["cache", *words]) == code, self._capsys.readouterr().err
        out, self.err = self._capsys.readouterr()
        return out

    def json(self, verb: str, *words: str, code: int = 0) -> Any:
        body = json.loads(self(verb, *words, "-o", "json", code=code))
        assert body["schema"] == f"trtx.cache.{verb}/v1"
        return body


@pytest.fixture
def trtx(capsys: pytest.CaptureFixture[str]) -> Trtx:
    return Trtx(capsys)


def listed(trtx: Trtx, *words: str) -> list[str]:
    return [entry["step"] for entry in trtx.json("ls", *words)["entries"]]


def test_entries_are_listed_filtered_and_sorted(store: Store, trtx: Trtx) -> None:
    assert listed(trtx) == ["package/cpu/fp32", "build/cpu/int8", "build/cpu/fp32"]
    assert listed(trtx, "--stage", "build", "--sort", "step") == ["build/cpu/fp32", "build/cpu/int8"]
    assert listed(trtx, "--step", "*/fp32", "--sort", "size") == ["package/cpu/fp32", "build/cpu/fp32"]
    assert listed(trtx, "--recipe", "recipe-1") == ["build/cpu/int8"]
    assert listed(trtx, "--larger-than", "1.5kB", "--sort", "used") == ["build/cpu/int8", "package/cpu/fp32"]
    assert listed(trtx, "--older-than", "30d") == ["build/cpu/fp32"]


def test_a_list_for_people_is_on_stderr(store: Store, trtx: Trtx) -> None:
    assert trtx("ls", "--sort", "used") == ""
    assert "40 d" in trtx.err.splitlines()[1]
    assert "3 entries, 5.9 KiB" in trtx.err


def test_an_entry_with_an_unreadable_manifest_is_listed(store: Store, trtx: Trtx) -> None:
    path = store.entry(key_of(0)) / "manifest.json"
    path.chmod(0o644)
    path.write_text("{")
    trtx("ls")
    assert "(its manifest cannot be read)" in trtx.err


def test_usage_is_summed_by_stage_and_recipe(store: Store, trtx: Trtx) -> None:
    body = trtx.json("du")
    assert body["total"]["entries"] == 3
    assert body["stages"]["build"]["entries"] == 2
    assert sum(row["bytes"] for row in body["recipes"].values()) == body["total"]["bytes"] > 0
    trtx("du")
    assert "package" in trtx.err and "total" in trtx.err


def test_usage_tells_of_built_kernels_beside_the_cache(
    store: Store, trtx: Trtx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    shelf = tmp_path / "xdg/trtx-kernels"
    assert trtx.json("du")["kernels"] == {"folder": str(shelf), "bytes": 0}
    put(shelf, "trtx_0123456789abcdef", store.output(key_of(0)) / "a.bin")
    assert trtx.json("du")["kernels"]["bytes"] == 1000
    trtx("du")
    assert f"of built kernels in {shelf}, which bounds itself" in trtx.err


def test_an_intact_cache_is_verified(store: Store, trtx: Trtx) -> None:
    assert trtx.json("verify")["bytes"] == 6000
    trtx("verify", key_of(0)[:6])
    assert "1 entries are intact" in trtx.err


def test_a_corrupt_entry_is_told_moved_away_and_exit_code_8(store: Store, trtx: Trtx) -> None:
    corrupt(store.output(key_of(1)) / "a.bin")
    body = trtx.json("verify", code=8)
    assert [entry["key"] for entry in body["corrupt"]] == [key_of(1)]
    assert Path(body["corrupt"][0]["quarantined"]).is_dir()
    assert "1 of 3 entries are corrupt" in trtx.err
    assert trtx.json("verify")["entries"] == 2


def test_a_corrupt_entry_of_a_cache_that_is_only_read_is_told(
    store: Store, trtx: Trtx, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(store.output(key_of(1)) / "a.bin")

    def refuse(path: Path, _target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    [told] = trtx.json("verify", code=8)["corrupt"]
    assert (told["key"], told["quarantined"]) == (key_of(1), None)
    trtx("verify", code=8)
    assert "could not be moved" in trtx.err


def test_a_dry_run_deletes_nothing_and_tells_what_the_run_then_deletes(store: Store, trtx: Trtx) -> None:
    planned = trtx.json("prune", "--older-than", "10d", "--dry-run")
    assert [entry["step"] for entry in planned["deleted"]] == ["build/cpu/fp32", "build/cpu/int8"]
    assert len(store.keys()) == 3
    done = trtx.json("prune", "--older-than", "10d", "--yes")
    assert done == planned | {"dry_run": False}
    assert store.keys() == [key_of(2)]


def test_a_dry_run_refuses_what_the_run_would_refuse(store: Store, trtx: Trtx) -> None:
    (store.root / "CACHEDIR.TAG").unlink()
    for sure in ("--dry-run", "--yes"):
        trtx("prune", "--max-size", "0B", sure, code=6)
        assert "nothing is deleted" in trtx.err
    assert len(store.keys()) == 3


def test_pruning_takes_away_what_killed_processes_left_even_when_no_entry_goes(store: Store, trtx: Trtx) -> None:
    (store.root / "tmp" / "trash-1").mkdir()
    trtx("prune", "--max-size", "1GB", "--dry-run")
    assert (store.root / "tmp" / "trash-1").exists()
    trtx("prune", "--max-size", "1GB")
    assert list((store.root / "tmp").iterdir()) == []


def test_pruning_to_a_size_is_told_to_people(store: Store, trtx: Trtx) -> None:
    trtx("prune", "--max-size", "1B", "--dry-run")
    assert "over the size" in trtx.err
    assert "3 entries would be deleted" in trtx.err
    trtx("prune", "--max-size", "1B", "-y")
    assert "3 entries deleted" in trtx.err and "0 B left" in trtx.err


def refuse_to_move(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Have a folder be as another user's; these tests may run as a user who may do everything."""
    move = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(number, os.strerror(number), str(path))
        return move(path, target)

    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.parametrize(
    ("number", "why"), [(errno.EPERM, "belongs to another user"), (errno.EACCES, "denied"), (errno.EBUSY, "busy")]
)
def test_an_entry_that_cannot_be_deleted_is_told_and_the_others_go(
    store: Store, trtx: Trtx, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    refuse_to_move(monkeypatch, store.entry(key_of(0)), number)
    body = trtx.json("prune", "--older-than", "10d", "--yes", code=6)
    assert [entry["key"] for entry in body["deleted"]] == [key_of(1)]
    assert why in body["failed"][key_of(0)]
    assert body["error"]["what"] == "1 entry could not be deleted"
    assert store.keys() == sorted([key_of(0), key_of(2)])
    trtx("prune", "--older-than", "10d", "--yes", code=6)
    assert f"{key_of(0)[:12]} could not be deleted" in trtx.err and "0 entries deleted" in trtx.err
    assert "1 entry could not be deleted" in trtx.err


def test_pruning_asks_and_only_a_yes_deletes(store: Store, trtx: Trtx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtx.console.is_terminal", lambda _stream: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\ny\n"))
    trtx("prune", "--older-than", "10d", code=130)
    assert "nothing was deleted" in trtx.err
    assert len(store.keys()) == 3
    trtx("prune", "--older-than", "10d")
    assert len(store.keys()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune",), "prune needs to know what may go"),
        (("prune", "--older-than", "1d"), "nobody is there to answer"),
        (("prune", "--older-than", "1d", "-o", "json"), "nobody is there to answer"),
        (("prune", "--older-than", "119min", "--yes"), "--older-than 119min is too short"),
        (("prune", "--older-than", "0s", "--yes"), "give at least --older-than 2h"),
        (("prune", "--older-than", "1"), "--older-than: a duration needs a unit"),
        (("prune", "--max-size", "many"), "--max-size: 'many' is not a size"),
        (("prune", "--older-than", "1d", "--keep-lock", "absent.yaml"), "there is no lock file absent.yaml"),
        (("rm", "xyz"), "'xyz' is no key"),
        (("verify", "f" * 64), f"there is no entry {'f' * 64}"),
        (("pin", "build/*/fp16"), "no entry is of a step 'build/*/fp16'"),
        (("pin", "build/cpu/fp33"), "did you mean 'build/cpu/fp32'?"),
    ],
)
def test_wrong_words_are_usage_errors(store: Store, trtx: Trtx, words: tuple[str, ...], message: str) -> None:
    trtx(*words, code=2)
    assert message in trtx.err
    assert len(store.keys()) == 3


def test_a_beginning_that_is_not_unique_is_refused_with_the_keys(store: Store, trtx: Trtx) -> None:
    keys = ["ab" * 31 + "00", "ab" * 31 + "01"]
    for key in keys:
        publish_entry(store, key)
    trtx("rm", "abab", code=2)
    assert "'abab' is the beginning of 2 keys" in trtx.err
    trtx("rm", "abac", code=2)
    assert "the nearest is abab" in trtx.err
    assert trtx.json("rm", keys[0])["removed"] == [keys[0]]


def test_a_pinned_entry_is_neither_pruned_nor_removed_until_unpinned(store: Store, trtx: Trtx) -> None:
    body = trtx.json("pin", "build/*", "--note", "the release")
    assert {pin["key"] for pin in body["pins"]} == {key_of(0), key_of(1)}
    assert set(trtx.json("prune", "--older-than", "10d", "--yes")["kept"]) == {key_of(0), key_of(1)}
    trtx("rm", key_of(0), code=2)
    assert "is pinned" in trtx.err
    assert trtx.json("unpin", key_of(0)[:5])["unpinned"] == [key_of(0)]
    trtx("rm", key_of(0)[:5])
    trtx("unpin", key_of(1))
    trtx("unpin", key_of(1))
    assert "none of these was pinned" in trtx.err
    assert store.keys() == sorted([key_of(1), key_of(2)])


def test_the_pin_of_an_entry_that_is_gone_can_be_removed(store: Store, trtx: Trtx) -> None:
    trtx("pin", key_of(0))
    store.remove(key_of(0))
    assert trtx.json("unpin", key_of(0))["unpinned"] == [key_of(0)]


def test_what_is_in_use_is_not_removed(store: Store, trtx: Trtx) -> None:
    with store.stage(key_of(30), uses=[key_of(0)]):
        trtx("rm", key_of(0), code=2)
    assert "cannot be removed now" in trtx.err


def test_locks_of_the_folders_runs_and_named_locks_keep_what_they_name(
    store: Store, trtx: Trtx, tmp_path: Path
) -> None:
    record = create_run(Path.cwd(), plan_of(tmp_path))
    (record.folder / "driver.json").write_text("{}")  # The driver is gone.
    Path("recipe.lock.yaml").write_text(f"build: {key_of(0)}\n")
    (tmp_path / "other.lock.yaml").write_text(f"build: {key_of(1)}\n")
    words = ("prune", "--older-than", "10d", "--dry-run")
    body = trtx.json(*words)
    assert [entry["key"] for entry in body["deleted"]] == [key_of(1)]
    assert body["locks"] == [str(Path("recipe.lock.yaml").resolve())]
    assert trtx.json(*words, "--keep-lock", str(tmp_path / "other.lock.yaml"))["deleted"] == []


def test_locks_in_the_folder_keep_what_they_name_though_no_run_is_recorded_there(store: Store, trtx: Trtx) -> None:
    Path("recipe.lock.yaml").write_text(f"build: {key_of(0)}\n")
    Path("deeper").mkdir()
    Path("deeper/recipe.lock.yaml").write_text(f"build: {key_of(1)}\n")
    Path("folder.lock.yaml").mkdir()
    body = trtx.json("prune", "--older-than", "10d", "--yes")
    assert [entry["key"] for entry in body["deleted"]] == [key_of(1)]
    assert body["locks"] == [str(Path("recipe.lock.yaml").resolve())]


def test_a_lock_that_cannot_be_read_stops_pruning(store: Store, trtx: Trtx, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("recipe.lock.yaml").write_text(f"build: {key_of(0)}\n")

    def refuse(path: Path) -> set[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("trtx.cache.prune.read_lock_keys", refuse)
    trtx("prune", "--older-than", "10d", "--yes", code=6)
    assert "nothing is deleted" in trtx.err and "recipe.lock.yaml: Permission denied" in trtx.err
    assert len(store.keys()) == 3


def test_entries_of_a_run_that_is_driven_stay(store: Store, trtx: Trtx, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    key = plan.step("build/cpu/fp32").key
    publish_entry(store, key)
    set_last_use(store, key, 50)
    record = create_run(Path.cwd(), plan)
    assert trtx.json("prune", "--older-than", "45d", "--yes")["kept"] == {key: f"in use by run {record.id}"}
    (record.folder / "driver.json").write_text("{}")
    (record.folder / "plan.json").write_text("{}")
    assert trtx.json("prune", "--older-than", "45d", "--yes")["kept"] == {}


def test_entries_of_a_run_of_another_folder_are_neither_pruned_nor_removed(
    store: Store, trtx: Trtx, tmp_path: Path
) -> None:
    record = tmp_path / "elsewhere" / "20260101-000000-abcd"
    record.mkdir(parents=True)
    note_run(store.root, record, [key_of(0)])
    assert set(trtx.json("prune", "--older-than", "30d", "--yes")["kept"]) == {key_of(0)}
    trtx("rm", key_of(0), code=2)
    assert f"in use by run {record.name} in {record}" in trtx.err
    end_run(store.root, record)
    trtx("rm", key_of(0))


def test_a_cache_of_a_newer_layout_is_refused_by_every_verb(store: Store, trtx: Trtx) -> None:
    (store.root / "layout").write_text(f"{int(LAYOUT_VERSION) + 1}\n")
    for words in (
        ("ls",),
        ("du",),
        ("verify",),
        ("prune", "--max-size", "1B"),
        ("pin", "x"),
        ("unpin", "x"),
        ("rm", "x"),
    ):
        trtx(*words, code=6)
        assert "update trtx" in trtx.err
    (store.root / "layout").write_text(LAYOUT_VERSION)
    assert len(store.keys()) == 3


def test_a_cache_that_does_not_exist_is_empty(trtx: Trtx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "absent"))
    assert trtx.json("ls")["entries"] == []
    assert trtx.json("verify")["entries"] == 0
    assert trtx.json("prune", "--max-size", "1B", "--yes")["deleted"] == []
    assert not (tmp_path / "absent").exists()


def test_ctrl_c_leaves_with_one_message(store: Store, trtx: Trtx, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trtx.cache.verify.verify_entries", interrupt)
    trtx("verify", code=130)
    assert trtx.err == "error: stopped\n"
