"""Pinning sources with a lock: what is asked, what is taken from the lock, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.entries import make_store, publish_entry
from support.hub import Hub, Repository, commit_of, serve_hub
from unit.sources.conftest import MODEL_FILES
from unit.sources.test_quantized import FILES, FOUND

from trtx.errors import EnvironmentProblem, LockOutOfDate, UsageProblem
from trtx.models.formats import QuantFormat
from trtx.plan.keys import make_factors, make_key
from trtx.plan.lock import Lock
from trtx.plan.resolve import resolve_dataset, resolve_model
from trtx.recipe.schema import Calibration, Model
from trtx.stages.params import PARAMS, DownloadParams

FIRST = commit_of("first")
HUB_MODEL = Model.model_validate({"source": "hf://owner/tiny"})
MEMORY_MODEL = Model.model_validate({"source": "memory://resolve/model"})
FILE = {"config.json": {"bytes": 1, "sha256": "a" * 64}}


@pytest.fixture(scope="module")
def running_hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: Hub) -> Hub:
    running_hub.reset()
    running_hub.repositories["models/owner/tiny"] = Repository(dict(MODEL_FILES))
    return running_hub


@pytest.fixture
def environ(running_hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": running_hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "TRTX_CACHE_DIR": str(tmp_path / "c")}


@pytest.fixture
def in_memory() -> Iterator[Any]:
    """A model on a file system that is neither the hub nor a folder."""
    system = fsspec.filesystem("memory")
    for name, content in MODEL_FILES.items():
        system.pipe(f"/resolve/model/{name}", content)
    yield system
    system.rm("/resolve", recursive=True)


def lock(**facts: Any) -> Lock:
    stages = {stage: params.code_version for stage, params in PARAMS.items()}
    return Lock.model_validate({"schema": "trtx.lock/v1", "stages": stages, **facts})


def model_lock(title: str, identity: str) -> Lock:
    return lock(models={title: {"identity": identity, "files": FILE}})


def test_a_locked_branch_is_asked_for_at_its_commit(hub: Hub, environ: dict[str, str]) -> None:
    pinned = resolve_model(HUB_MODEL, environ, model_lock("hf://owner/tiny@main", FIRST))
    assert pinned.source.identity == FIRST
    assert pinned.files == {"config.json": "a" * 64}
    assert not [path for _, path, _ in hub.requests if path.endswith("/revision/main")]


def test_the_format_of_a_locked_model_is_that_of_the_files_in_the_cache(hub: Hub, environ: dict[str, str]) -> None:
    params = DownloadParams(url="hf://owner/tiny", identity=FIRST)
    key = make_key(make_factors(params, inputs={}, toolchain={}, machine={}))
    publish_entry(make_store(Path(environ["TRTX_CACHE_DIR"])), key, FILES, step="download/model")
    offline = {**environ, "TRTX_OFFLINE": "1"}
    pinned = resolve_model(HUB_MODEL, offline, model_lock("hf://owner/tiny@main", FIRST))
    assert pinned.source.quantized == FOUND
    assert pinned.stored == QuantFormat(algorithm="fp8", exclude=())
    assert hub.requests == []


def test_quantized_weights_in_pickles_are_refused_by_the_plan(hub: Hub, environ: dict[str, str]) -> None:
    files = {name: content for name, content in FILES.items() if name != "model.safetensors"}
    hub.repositories["models/owner/tiny"] = Repository({**files, "pytorch_model.bin": b"pickle"})
    pinned = resolve_model(Model(source="hf://owner/tiny", allow_pickle=True), environ)
    with pytest.raises(UsageProblem, match="is quantized and has no safetensors weights"):
        _ = pinned.stored


def test_a_commit_that_is_gone_says_how_to_move_on(hub: Hub, environ: dict[str, str]) -> None:
    with pytest.raises(LockOutOfDate, match=r"the commit that the lock pins hf://owner/tiny@main to is gone") as caught:
        resolve_model(HUB_MODEL, environ, model_lock("hf://owner/tiny@main", commit_of("gone")))
    assert "--upgrade model" in caught.value.fix


def test_a_branch_that_was_resolved_once_needs_no_second_question(hub: Hub, environ: dict[str, str]) -> None:
    resolve_model(HUB_MODEL, environ)
    hub.requests.clear()
    resolve_model(HUB_MODEL, {**environ, "TRTX_OFFLINE": "1"}, model_lock("hf://owner/tiny@main", FIRST))
    assert hub.requests == []


def test_another_split_of_a_locked_dataset_is_of_the_same_commit(hub: Hub, environ: dict[str, str]) -> None:
    rows = {"train.jsonl": b"{}", "test.jsonl": b"{}"}
    hub.repositories["datasets/o/d"] = Repository(rows, commit_of("second"), references=("main", FIRST))
    data = Calibration.model_validate({"dataset": "hf://o/d", "split": "test"})
    known = lock(datasets={"hf://o/d@main#train": {"identity": commit_of("second")}})
    assert resolve_dataset(data, environ, known).identity == commit_of("second")
    hub.requests.clear()
    exact = lock(datasets={"hf://o/d@main#test": {"identity": FIRST}})
    assert resolve_dataset(data, environ, exact).identity == FIRST
    assert hub.requests == []


def test_a_folder_elsewhere_that_changed_is_not_what_the_lock_pins(in_memory: Any, environ: dict[str, str]) -> None:
    identity = resolve_model(MEMORY_MODEL, environ).source.identity
    title = "memory://resolve/model@main"
    assert resolve_model(MEMORY_MODEL, environ, model_lock(title, identity)).files
    in_memory.pipe("/resolve/model/generation_config.json", b'{"changed": true}')
    with pytest.raises(LockOutOfDate, match="is no longer what the lock pins"):
        resolve_model(MEMORY_MODEL, environ, model_lock(title, identity))
    assert resolve_model(MEMORY_MODEL, environ).source.identity != identity


def test_offline_a_folder_elsewhere_is_not_asked(in_memory: Any, environ: dict[str, str]) -> None:
    offline = {**environ, "TRTX_OFFLINE": "1"}
    with pytest.raises(EnvironmentProblem, match="download/model needs the network") as caught:
        resolve_model(MEMORY_MODEL, offline)
    assert "is in no lock" in caught.value.why
    with pytest.raises(EnvironmentProblem, match="download/model needs the network") as caught:
        resolve_model(MEMORY_MODEL, offline, model_lock("memory://resolve/model@main", "x"))
    assert "cannot be asked" in caught.value.why


def test_a_folder_of_this_machine_is_followed_whatever_the_lock_says(environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in MODEL_FILES.items():
        (folder / name).write_bytes(content)
    model = Model.model_validate({"source": f"file://{folder}"})
    pinned = resolve_model(model, environ, model_lock(f"file://{folder}@main", "what it was"))
    assert pinned.source.identity != "what it was"
    assert pinned.files == {}


def test_digests_made_by_another_download_stage_or_of_generated_files_are_not_demanded(
    hub: Hub, environ: dict[str, str]
) -> None:
    old = model_lock("hf://owner/tiny@main", FIRST).model_copy(update={"stages": {"download": 0}})
    assert resolve_model(HUB_MODEL, environ, old).files == {}
    demo = Model.model_validate({"source": "demo://tiny-llama"})
    identity = resolve_model(demo, environ).source.identity
    assert resolve_model(demo, environ, model_lock("demo://tiny-llama@main", identity)).files == {}
