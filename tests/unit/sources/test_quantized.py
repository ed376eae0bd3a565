"""What a plan reads of a model that is quantized already: descriptions and headers, never weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.hub import Hub, Repository
from unit.sources.conftest import MODEL_FILES

from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.models.sources import hf, local, remote
from trtx.models.sources.base import Request
from trtx.models.sources.quantized import QuantizedFiles, read_shapes
from trtx.models.sources.select import model_files

SHAPES = {"model.norm.weight": [8], "model.layers.0.mlp.down_proj.weight": [4, 8]}
DESCRIBED = {"quantization": {"quant_algo": "FP8"}}
FOUND = QuantizedFiles(DESCRIBED, {name: tuple(shape) for name, shape in SHAPES.items()})


def make_header(shapes: dict[str, Any], filler: int = 4096) -> bytes:
    """A safetensors file whose numbers are of no interest."""
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * filler


FILES = MODEL_FILES | {
    "model.safetensors": make_header(SHAPES),
    "hf_quant_config.json": json.dumps(DESCRIBED).encode(),
}


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def ask_hub(server: Hub, folder: Path, files: dict[str, bytes]) -> Request:
    server.repositories["models/owner/tiny"] = Repository(files)
    environ = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(folder / "hf"),
        "HOME": str(folder),
        "TRTX_CACHE_DIR": str(folder / "trtx"),
    }
    return Request("hf://owner/tiny", "model", "main", environ=environ)


def test_every_source_reads_the_description_and_the_headers(hub: Hub, memory: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", FILES)
    environ = {"TRTX_CACHE_DIR": str(tmp_path / "cache")}
    assert local.resolve(Request(f"file://{folder}", "model", environ=environ)).quantized == FOUND
    for name, content in FILES.items():
        memory.pipe(f"/models/tiny/{name}", content)
    assert remote.resolve(Request("memory://models/tiny", "model")).quantized == FOUND
    assert hf.resolve(ask_hub(hub, tmp_path, FILES)).quantized == FOUND


def test_a_model_that_is_not_quantized_is_read_no_further(hub: Hub, tmp_path: Path) -> None:
    assert hf.resolve(ask_hub(hub, tmp_path, MODEL_FILES)).quantized is None
    assert not any(path.endswith("model.safetensors") for _, path, _ in hub.requests)


def test_of_a_repository_only_the_header_is_asked_for_and_remembered(hub: Hub, tmp_path: Path) -> None:
    request = ask_hub(hub, tmp_path, FILES)
    commit = hf.resolve(request).identity
    asked = [
        headers["range"]
        for _, path, headers in hub.requests
        if path.endswith("resolve/" + commit + "/model.safetensors")
    ]
    length = struct.unpack("<Q", FILES["model.safetensors"][:8])[0]
    assert asked == ["bytes=0-7", f"bytes=8-{7 + length}"]
    hub.requests.clear()
    pinned = Request(request.url, "model", commit, environ=request.environ)
    assert hf.resolve(pinned).quantized == FOUND
    assert hub.requests == []


def test_offline_the_hub_cache_answers_where_it_has_the_weights(hub: Hub, tmp_path: Path) -> None:
    request = ask_hub(hub, tmp_path, FILES)
    commit = hf.resolve(request).identity
    (tmp_path / "trtx").rename(tmp_path / "forgotten")
    offline = Request(request.url, "model", commit, environ={**request.environ, "TRTX_OFFLINE": "1"})
    hub.requests.clear()
    with pytest.raises(EnvironmentProblem):
        hf.resolve(offline)
    (tmp_path / "out").mkdir()
    hf.fetch(request, commit, tmp_path / "out", lambda done, total, unit: None)
    assert (tmp_path / "out/hf_quant_config.json").is_file()
    hub.requests.clear()
    assert hf.resolve(offline).quantized == FOUND
    assert hub.requests == []


def test_a_hub_that_sends_whole_files_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.hub.HubHandler.send_content", send_all)
    with pytest.raises(EnvironmentProblem, match=r"does not send parts of model\.safetensors"):
        hf.resolve(ask_hub(hub, tmp_path, FILES))


def send_all(handler: Any, file: str, content: bytes, headers: dict[str, str]) -> None:
    handler.send(200, content, headers, file)


def test_the_description_is_a_file_of_the_model() -> None:
    assert "hf_quant_config.json" in model_files(FILES, "here", allow_pickle=False)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no sensible length"),
        (struct.pack("<Q", 1 << 62), "no sensible length"),
        (struct.pack("<Q", 4) + b"{..}", "Expecting property name"),
        (struct.pack("<Q", 2) + b"[]", "does not hold a JSON object"),
        (struct.pack("<Q", 13) + b'{"a": {"b":1}}'[:13] + b"}", "Expecting"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "does not describe tensors"),
    ],
    ids=["empty", "endless", "no JSON", "a list", "cut", "no shapes"],
)
def test_a_damaged_header_is_refused(content: bytes, why: str) -> None:
    def read(name: str, start: int, stop: int | None) -> bytes:
        return content[start:stop]

    with pytest.raises(VerificationFailed, match=r"model.safetensors of here cannot be read") as caught:
        read_shapes("model.safetensors", "here", read)
    assert why in caught.value.why


def test_a_tensor_that_its_neighbour_needs_is_missed_by_name() -> None:
    with pytest.raises(VerificationFailed, match=r"no tensor model\.a"):
        FOUND.shape("model.a")
