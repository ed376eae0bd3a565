"""Any fsspec URL, through the in-memory file system and drivers that are missing or fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from unit.sources.conftest import MODEL_FILES, OTHER_FILES

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.models.sources import remote
from trtx.models.sources.base import Request, find_source

URL = "memory://models/tiny"


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs: MemoryFileSystem = fsspec.filesystem("memory")
    for name, content in {**MODEL_FILES, **OTHER_FILES}.items():
        fs.pipe(f"/models/tiny/{name}", content)
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def fetch(request: Request, identity: str, output: Path) -> Path:
    output.mkdir()
    find_source(request.url).fetch(request, identity, output, lambda done, total, unit: None)
    return output


def test_a_model_is_pinned_and_copied(memory: MemoryFileSystem, tmp_path: Path) -> None:
    request = Request(URL, "model")
    resolved = find_source(URL).resolve(request)
    assert resolved.config == json.loads(MODEL_FILES["config.json"])
    assert remote.resolve(request).identity == resolved.identity
    output = fetch(request, resolved.identity, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == MODEL_FILES


def test_a_file_written_again_is_another_identity_and_is_refused(memory: MemoryFileSystem, tmp_path: Path) -> None:
    request = Request(URL, "model")
    identity = remote.resolve(request).identity
    memory.pipe("/models/tiny/tokenizer.json", MODEL_FILES["tokenizer.json"].replace(b"1.0", b"1.1"))
    assert remote.resolve(request).identity != identity
    with pytest.raises(VerificationFailed, match="has changed since it was pinned"):
        fetch(request, identity, tmp_path / "out")


def test_a_file_that_changes_while_it_is_copied_is_refused(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(URL, "model")
    identity = remote.resolve(request).identity
    copy = remote.copy_stream

    def copy_and_change(*arguments: Any) -> str:
        memory.pipe("/models/tiny/config.json", b"{}")
        return copy(*arguments)

    monkeypatch.setattr(remote, "copy_stream", copy_and_change)
    with pytest.raises(VerificationFailed, match="has changed since it was pinned"):
        fetch(request, identity, tmp_path / "out")


def test_without_versions_from_the_server_the_content_counts(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIME_FIELDS", ())
    request = Request(URL, "model")
    identity = remote.resolve(request).identity
    memory.pipe("/models/tiny/tokenizer.json", MODEL_FILES["tokenizer.json"])
    assert remote.resolve(request).identity == identity
    memory.pipe("/models/tiny/tokenizer.json", MODEL_FILES["tokenizer.json"].replace(b"1.0", b"1.1"))
    assert remote.resolve(request).identity != identity


def test_a_dataset_is_a_folder_or_one_file(memory: MemoryFileSystem, tmp_path: Path) -> None:
    memory.pipe("/data/train.jsonl", b'{"text": "a"}')
    memory.pipe("/data/test.jsonl", b'{"text": "b"}')
    for url, names in (("memory://data", {"train.jsonl", "test.jsonl"}), ("memory://data/test.jsonl", {"test.jsonl"})):
        request = Request(url, "dataset", split="train")
        output = fetch(request, remote.resolve(request).identity, tmp_path / str(len(names)))
        assert {path.name for path in output.iterdir()} == names
    with pytest.raises(UsageProblem, match="has no split 'dev'"):
        remote.resolve(Request("memory://data", "dataset", split="dev"))


def expect(kind: type[Exception], what: str, url: str) -> Any:
    with pytest.raises(kind, match=what) as caught:
        remote.resolve(Request(url, "model"))
    return caught.value


def test_each_thing_wrong_with_a_url_is_named(memory: MemoryFileSystem) -> None:
    expect(UsageProblem, "does not exist", "memory://nothing")
    error = expect(UsageProblem, "unknown kind of source 'htpp://'", "htpp://somewhere/x")
    assert "'http'" in error.fix
    memory.pipe("/models/tiny/config.json", b"{")
    expect(UsageProblem, "is not JSON", URL)
    memory.pipe("/models/tiny/config.json", b"[]")
    expect(UsageProblem, "is not a JSON object", URL)
    with pytest.raises(UsageProblem, match="has no revisions"):
        remote.resolve(Request(URL, "model", "v2"))


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"class": "absent_driver.Files", "err": "pip install 'fsspec[oss]'"}
    monkeypatch.setitem(known_implementations, "oss", absent)
    error = expect(EnvironmentProblem, "oss:// needs a driver", "oss://bucket/model")
    assert error.fix == "pip install 'fsspec[oss]'"


@pytest.mark.parametrize(
    ("raised", "kind", "what"),
    [
        (FileNotFoundError("bucket"), UsageProblem, "does not exist"),
        (PermissionError("no"), UsageProblem, "may not be read"),
        (ConnectionError("refused"), EnvironmentProblem, "cannot reach memory://models/tiny"),
    ],
)
def test_what_a_driver_raises_becomes_one_message(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception], what: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(MemoryFileSystem, "find", fail)
    assert expect(kind, what, URL).fix
