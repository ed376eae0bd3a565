"""file:// sources: their digest, its memory, and copying."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from unit.sources.conftest import MODEL_FILES, OTHER_FILES

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.models.sources import local, memo
from trtx.models.sources.base import Request
from trtx.models.sources.transfer import require_space


def write_model(folder: Path) -> Path:
    for name, content in {**MODEL_FILES, **OTHER_FILES}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def ask(path: object, tmp_path: Path, **options: object) -> Request:
    options.setdefault("kind", "model")
    return Request(f"file://{path}", environ={"TRTX_CACHE_DIR": str(tmp_path / "cache")}, **options)  # type: ignore[arg-type]


def fetch(request: Request, identity: str, output: Path) -> Path:
    output.mkdir()
    local.fetch(request, identity, output, lambda done, total, unit: None)
    return output


def test_the_identity_is_of_the_content_wherever_the_folder_is(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "elsewhere")
    first, second = (local.resolve(ask(path, tmp_path)) for path in (model, other))
    assert first.identity == second.identity
    assert first.url != second.url
    assert first.config == json.loads(MODEL_FILES["config.json"])


def test_files_nobody_needs_do_not_count(model: Path, tmp_path: Path) -> None:
    before = local.resolve(ask(model, tmp_path)).identity
    (model / "README.md").write_text("changed")
    assert local.resolve(ask(model, tmp_path)).identity == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_one_changed_byte_changes_the_identity(model: Path, tmp_path: Path, name: str) -> None:
    before = local.resolve(ask(model, tmp_path)).identity
    content = (model / name).read_bytes()
    (model / name).write_bytes(content[:-1] + b" " if name == "config.json" else content[:-1] + b"?")
    if name == "config.json":
        (model / name).write_bytes(content + b" ")
    assert local.resolve(ask(model, tmp_path)).identity != before


def test_a_relative_path_is_resolved_against_the_working_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert local.resolve(ask("model", tmp_path)).url == f"file://{model}"


def test_planning_twice_reads_the_weights_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SETTLED_NS", -1)
    first = local.resolve(ask(model, tmp_path)).identity
    monkeypatch.setattr(memo, "sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    assert local.resolve(ask(model, tmp_path)).identity == first


def test_a_file_of_the_same_size_and_time_but_another_inode_is_read_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo, "SETTLED_NS", -1)
    weights = model / "model.safetensors"
    first = local.resolve(ask(model, tmp_path)).identity
    stat = weights.stat()
    changed = model / "new"
    changed.write_bytes(bytes(stat.st_size))
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed.replace(weights)
    assert local.resolve(ask(model, tmp_path)).identity != first


def test_a_file_touched_just_now_is_not_remembered(model: Path, tmp_path: Path) -> None:
    local.resolve(ask(model, tmp_path))
    assert not (tmp_path / "cache").exists()
    now = time.time_ns()
    os.utime(model / "config.json", ns=(now, now - 10**12))
    assert not memo._is_settled(memo._stamp(model / "config.json"))  # its ctime is still now


def test_a_damaged_memo_is_ignored(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "SETTLED_NS", -1)
    first = local.resolve(ask(model, tmp_path)).identity
    (remembered,) = (tmp_path / "cache" / "memo").glob("*.json")
    for damage in ("", "[]", '{"config.json": 3}', '{"config.json": [[1, 2], "x", 4]}'):
        remembered.write_text(damage)
        assert local.resolve(ask(model, tmp_path)).identity == first


def test_without_a_writable_cache_folder_planning_still_works(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert local.resolve(ask(model, tmp_path)).identity


def test_fetching_copies_the_needed_files(model: Path, tmp_path: Path) -> None:
    request = ask(model, tmp_path)
    output = fetch(request, local.resolve(request).identity, tmp_path / "out")
    assert {path.name for path in output.iterdir()} == set(MODEL_FILES)
    assert (output / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    assert (output / "model.safetensors").stat().st_ino != (model / "model.safetensors").stat().st_ino


def test_a_model_that_changed_since_the_plan_is_refused(model: Path, tmp_path: Path) -> None:
    request = ask(model, tmp_path)
    identity = local.resolve(request).identity
    (model / "tokenizer.json").write_text("other")
    with pytest.raises(VerificationFailed, match="has changed since the plan"):
        fetch(request, identity, tmp_path / "out")


def test_a_full_disk_is_one_clear_error(model: Path, tmp_path: Path) -> None:
    request = ask(model, tmp_path)
    output = tmp_path / "out"
    output.mkdir()
    (output / "model.safetensors").symlink_to("/dev/full")  # every write to it finds the device full
    with pytest.raises(EnvironmentProblem, match=r"cannot write .*model\.safetensors") as caught:
        local.fetch(request, local.resolve(request).identity, output, lambda done, total, unit: None)
    assert caught.value.why == "the disk is full"


def test_a_disk_too_small_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="not enough disk space"):
        require_space(tmp_path / "not" / "made" / "yet", 10**18)


def expect_usage(what: str, request: Request) -> UsageProblem:
    with pytest.raises(UsageProblem, match=what) as caught:
        local.resolve(request)
    return caught.value


def test_each_thing_wrong_with_a_folder_is_named(model: Path, tmp_path: Path) -> None:
    error = expect_usage("does not exist", ask("no/such", tmp_path))
    assert "relative to the working folder" in error.why
    expect_usage("names nothing", ask("", tmp_path))
    expect_usage("is not a folder", ask(model / "config.json", tmp_path))
    expect_usage("has no revisions", ask(model, tmp_path, revision="v2"))
    assert local.resolve(ask(model, tmp_path, revision="main"))
    (model / "config.json").write_text("{")
    expect_usage(r"config\.json of .* is not JSON", ask(model, tmp_path))
    (model / "config.json").write_text("[]")
    expect_usage("is not a JSON object", ask(model, tmp_path))
    (model / "config.json").unlink()
    expect_usage("is not a model", ask(model, tmp_path))


def test_a_missing_shard_is_found_while_planning(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(VerificationFailed, match="lacks 1 of 1 weight files"):
        local.resolve(ask(model, tmp_path))
    index.write_text("[]")
    with pytest.raises(VerificationFailed, match="cannot be read"):
        local.resolve(ask(model, tmp_path))


def test_a_dataset_is_a_file_or_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("one")
    (folder / "b.jsonl").write_text('{"text": "two"}')
    (folder / "c.md").write_text("not data")
    request = ask(folder, tmp_path, kind="dataset", split="train")
    output = fetch(request, local.resolve(request).identity, tmp_path / "out")
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == ["b.jsonl", "deep/a.txt"]
    one = ask(folder / "b.jsonl", tmp_path, kind="dataset", split="train")
    assert [path.name for path in fetch(one, local.resolve(one).identity, tmp_path / "one").iterdir()] == ["b.jsonl"]
    expect_usage("has no split 'test'", ask(folder, tmp_path, kind="dataset", split="test"))
    expect_usage("has no data files", ask(folder / "c.md", tmp_path, kind="dataset"))
