from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import make_llama

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.checkpoint import INDEX, SINGLE, Checkpoint, load_model_config


def test_a_sharded_checkpoint_reads_like_a_single_file(tmp_path: Path) -> None:
    expected = make_llama(tmp_path / "one").state_dict()
    make_llama(tmp_path / "many", shards="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    with Checkpoint(tmp_path / "one") as one, Checkpoint(tmp_path / "many") as many:
        assert one.names == many.names == sorted(expected)
        for name in one.names:
            assert torch.equal(one.read(name), expected[name])
            assert torch.equal(many.read(name), expected[name])
        name = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(many.read_part(name, range(8, 24), range(3, 5)), expected[name][8:24, 3:5])
        assert many.dtype(name) == "F32"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageProblem) as caught:
        Checkpoint(tmp_path)
    assert name in caught.value.why
    assert "could run code" in caught.value.why


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="no safetensors weights"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(VerificationFailed, match=r"gone\.safetensors is not a readable"):
        Checkpoint(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(VerificationFailed) as caught:
        Checkpoint(tmp_path)
    assert caught.value.why == f"{INDEX} has no 'weight_map'"


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(VerificationFailed, match="names files outside its folder"):
        Checkpoint(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / SINGLE)
    data = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationFailed, match=r"model\.safetensors is not a readable"):
        Checkpoint(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, 4)}, tmp_path / SINGLE)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(VerificationFailed, match="has no tensor b"):
        checkpoint.read("b")


def test_a_tensor_smaller_than_the_config_says_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4, 4)}, tmp_path / SINGLE)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(VerificationFailed, match=r"a in .* has the wrong shape"):
        checkpoint.read_part("a", range(4), range(5))


@pytest.mark.parametrize(("text", "why"), [(None, "config.json is missing"), ("{", "config.json is not JSON")])
def test_a_checkpoint_without_a_readable_config_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(VerificationFailed) as caught:
        load_model_config(tmp_path)
    assert caught.value.why == why
