from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import make_llama, make_unified
from support.modules import convert_quietly

from trtx.backends.inductor.convert import convert
from trtx.errors import VerificationFailed
from trtx.models.layout import make_layout
from trtx.models.weights_config import load_weights_config
from trtx.stages.base import StepContext
from trtx.stages.convert import run
from trtx.stages.params import ConvertParams


def test_the_config_states_every_tensor_and_the_layout_that_a_build_expects(tmp_path: Path) -> None:
    make_unified(tmp_path / "checkpoint", "fp8", kv_cache="fp8")
    written = convert_quietly(tmp_path / "checkpoint", tmp_path / "weights", "bfloat16", 2, 2)
    config = load_weights_config(tmp_path / "weights")
    assert config == written
    assert [rank.file for rank in config.ranks] == [f"rank{rank}.safetensors" for rank in range(4)]
    for number, rank in enumerate(config.ranks):
        layout = make_layout(config.model, config.quantization, "bfloat16", 2, 2, number)
        assert rank.layout_sha256 == layout.sha256
        assert [(t.name, t.shape, t.dtype) for t in rank.tensors] == [
            (t.name, t.shape, t.dtype) for t in layout.tensors
        ]


def test_the_tokenizer_comes_along_under_a_name_that_every_transformers_loads(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    make_llama(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "eos_token": "</s>"}')
    convert_quietly(checkpoint, tmp_path / "weights")
    folder = tmp_path / "weights" / "tokenizer"
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
    }
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert {"tokenizer.json", "generation_config.json"} <= {path.name for path in folder.iterdir()}


def test_the_step_reports_its_progress_and_what_it_wrote(tmp_path: Path) -> None:
    make_llama(tmp_path / "checkpoint")
    for name in ("output", "work"):
        (tmp_path / name).mkdir()
    context = StepContext(
        inputs={"checkpoint": tmp_path / "checkpoint"},
        output=tmp_path / "output",
        work=tmp_path / "work",
        progress_file=tmp_path / "progress.json",
    )
    summary = run(ConvertParams(dtype="float32", tensor=1, pipeline=1), context)
    written = (tmp_path / "output" / "rank0.safetensors").stat().st_size
    assert summary == {"algorithm": "none", "kv_cache": "auto", "ranks": 1, "bytes": written}
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["done"] == progress["total"] > 10


def test_a_second_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    make_unified(tmp_path / "checkpoint", "int8_sq")
    files = []
    for name in ("a", "b"):
        convert_quietly(tmp_path / "checkpoint", tmp_path / name)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()})
    assert files[0] == files[1]


def test_a_damaged_checkpoint_leaves_no_config(tmp_path: Path) -> None:
    make_llama(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "weights").mkdir()
    with pytest.raises(VerificationFailed, match="not a readable safetensors file"):
        convert(tmp_path / "checkpoint", tmp_path / "weights", "float32", 1, 1, lambda *_: None)
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("text", [None, "{}", "not json"])
def test_a_folder_that_is_no_weights_folder_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(VerificationFailed):
        load_weights_config(tmp_path)
