"""random:// makes models of published shapes: the same bytes everywhere, and no others under the same name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import sha256_file
from trtx.models import random_model
from trtx.models.config import read_model_config
from trtx.models.random_model import GAIN, deviation_of, list_tensors, make_shards
from trtx.models.sources import random
from trtx.models.sources.base import Request
from trtx.runtime.tokenizer import Tokenizer

URL = "random://llama-tiny"


def fetch(url: str, output: Path) -> Path:
    output.mkdir()
    request = Request(url, "model")
    random.fetch(request, random.resolve(request).identity, output, lambda *_: None)
    return output


def test_the_same_name_and_seed_are_the_same_bytes_and_another_seed_is_not(tmp_path: Path) -> None:
    first, second = (fetch(URL, tmp_path / name) for name in ("a", "b"))
    other = fetch(f"{URL}?seed=8", tmp_path / "c")
    names = sorted(path.name for path in first.iterdir())
    assert [sha256_file(first / name) for name in names] == [sha256_file(second / name) for name in names]
    assert sha256_file(first / "model-00001-of-00001.safetensors") != sha256_file(
        other / "model-00001-of-00001.safetensors"
    )
    assert random.resolve(Request(URL, "model")).identity != random.resolve(Request(f"{URL}?seed=8", "model")).identity


def test_the_folder_is_a_model_that_transformers_and_trtx_read(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = fetch(URL, tmp_path / "a")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    layer, columns = model.model.layers[0], 256
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(2, rel=0.05)
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(GAIN / columns**0.5, rel=0.05)
    assert model.lm_head.weight.std().item() == pytest.approx(GAIN / columns**0.5, rel=0.05)
    # Smaller by the root of twice the number of layers, which are two.
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(GAIN / columns**0.5 / 2, rel=0.05)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(GAIN / 512**0.5 / 2, rel=0.05)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("any text: ü")) == "any text: ü"


def test_matrices_of_the_published_width_have_the_published_deviation() -> None:
    specs = {spec.name: spec for spec in list_tensors(random.SHAPES["llama-3-8b"])}
    assert deviation_of(specs["model.layers.3.mlp.gate_proj.weight"], random.SHAPES["llama-3-8b"]) == 0.02


def test_embeddings_that_are_the_head_as_well_are_no_larger_than_a_head() -> None:
    config = random.SHAPES["llama-3.2-1b"]
    specs = {spec.name: spec for spec in list_tensors(config)}
    assert deviation_of(specs["model.embed_tokens.weight"], config) == pytest.approx(GAIN / 2048**0.5)


def test_every_shape_is_one_that_engines_can_have() -> None:
    for name, config in random.SHAPES.items():
        assert read_model_config(config).hidden_size == config["hidden_size"], name


def test_large_models_are_written_in_several_files_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_model, "SHARD_BYTES", 1 << 20)
    folder = fetch(URL, tmp_path / "a")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert index.keys() == {spec.name for spec in list_tensors(random.SHAPES["llama-tiny"])}
    for name, file in index.items():
        with safe_open(folder / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 - not a mapping


def test_how_tensors_are_put_into_files_changes_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(fetch(URL, tmp_path / "a") / "model-00001-of-00001.safetensors")
    monkeypatch.setattr(random_model, "SHARD_BYTES", 1 << 20)
    parts = {
        name: tensor
        for path in sorted(fetch(URL, tmp_path / "b").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    assert whole.keys() == parts.keys()
    assert all(whole[name].equal(parts[name]) for name in whole)
    assert sum(map(len, make_shards(list(list_tensors(random.SHAPES["llama-tiny"]))))) == len(whole)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("random://llama-3-9b", "there is no published shape 'llama-3-9b'"),
        (f"{URL}?sead=3", "'sead=3' means nothing in"),
        (f"{URL}?seed=x", "'seed=x' means nothing in"),
    ],
)
def test_a_name_that_means_nothing_is_refused(url: str, what: str) -> None:
    with pytest.raises(UsageProblem, match=what.replace("?", r"\?")):
        random.resolve(Request(url, "model"))


def test_there_are_no_random_datasets() -> None:
    with pytest.raises(UsageProblem, match="is no dataset"):
        random.resolve(Request(URL, "dataset"))


def test_a_model_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="is not what was planned"):
        random.fetch(Request(URL, "model"), "llama-tiny seed 7 version 0", tmp_path, lambda *_: None)
