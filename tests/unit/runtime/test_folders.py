from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.engines import make_card

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.weights_config import RankFile, WeightsConfig
from trtx.runtime.folders import EngineFolders, find_folders

CARD = make_card()


def write_engine(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text(json.dumps(CARD.model_dump(mode="json", by_alias=True)))
    return folder


def test_a_ready_engine_folder_has_all_parts_inside(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "e")
    for name in ("weights", "tokenizer"):
        (engine / name).mkdir()
    assert find_folders(engine) == EngineFolders(engine, engine / "weights", engine / "tokenizer")


def test_a_deployment_folder_is_taken_for_the_engine_inside_it(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "package" / "engine")
    (engine / "weights").mkdir()
    assert find_folders(tmp_path / "package").engine == engine


def test_build_and_convert_outputs_are_joined_and_the_tokenizer_comes_with_the_weights(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "build")
    weights = tmp_path / "convert"
    weights.mkdir()
    assert find_folders(engine, weights) == EngineFolders(engine, weights, weights / "tokenizer")


def test_a_folder_that_is_no_engine_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="is not an engine folder"):
        find_folders(tmp_path)
    with pytest.raises(UsageProblem, match="there is no folder"):
        find_folders(tmp_path / "nowhere")
    with pytest.raises(UsageProblem, match="has no weights"):
        find_folders(write_engine(tmp_path / "build"))


def test_the_size_of_the_weights_is_that_of_the_ranks_file(tmp_path: Path) -> None:
    config = WeightsConfig(
        model=CARD.model,
        quantization=CARD.quantization,
        dtype="float32",
        tensor=1,
        pipeline=1,
        ranks=(RankFile(file="rank0.safetensors", layout_sha256="0" * 64, tensors=()),),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    folders = EngineFolders(tmp_path, tmp_path, tmp_path)
    with pytest.raises(VerificationFailed, match=r"rank0\.safetensors is missing"):
        folders.weights_bytes(CARD)
    (tmp_path / "rank0.safetensors").write_bytes(b"x" * 123)
    assert folders.weights_bytes(CARD) == 123
