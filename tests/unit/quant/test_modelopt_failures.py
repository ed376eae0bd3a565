"""Models and texts that cannot be calibrated: one clear error each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support.checkpoints import make_llama
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer
from unit.quant.conftest import calibrate, write_data

from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed
from trtx.models.sources.transfer import saving
from trtx.quant import checkpoint_folder
from trtx.quant.checkpoint_folder import load_model


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil."""
    return shutil.copytree(model, tmp_path / "own")


def expect(kind: type[TrtxError], what: str, model: Path, data: Path, **format_: object) -> TrtxError:
    with pytest.raises(kind, match=what) as caught:
        calibrate(model, data, model.parent / "out", **{"algorithm": "int8_wo", **format_})
    assert caught.value.why
    assert caught.value.fix
    return caught.value


def rewrite(model: Path, change: dict[str, Tensor | None]) -> None:
    """Change, or with None remove, tensors."""
    tensors = {**load_file(model / "model.safetensors"), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(own: Path, data: Path, value: float) -> None:
    weight = load_file(own / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    weight[3, 5] = value
    rewrite(own, {"model.layers.1.mlp.up_proj.weight": weight})
    expect(VerificationFailed, r"model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite", own, data)


def test_a_truncated_weights_file_is_refused(own: Path, data: Path) -> None:
    content = (own / "model.safetensors").read_bytes()
    (own / "model.safetensors").write_bytes(content[: len(content) // 2])
    expect(VerificationFailed, "weights cannot be read", own, data)


def test_a_weights_file_of_noise_is_refused(own: Path, data: Path) -> None:
    (own / "model.safetensors").write_bytes(b"\xff" * 1000)
    expect(VerificationFailed, "weights cannot be read", own, data)


def test_a_missing_tensor_is_never_made_up(own: Path, data: Path) -> None:
    rewrite(own, {"model.layers.0.self_attn.o_proj.weight": None})
    error = expect(VerificationFailed, "weights are incomplete: 1 tensors", own, data)
    assert "model.layers.0.self_attn.o_proj.weight" in error.why


def test_a_tensor_of_another_shape_is_refused(own: Path, data: Path) -> None:
    rewrite(own, {"model.layers.0.self_attn.o_proj.weight": torch.zeros(3, 5)})
    expect(VerificationFailed, "weights", own, data)


def test_a_missing_shard_is_refused(own: Path, data: Path) -> None:
    (own / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    expect(VerificationFailed, "weights cannot be read", own, data)


def change_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_that_is_quantized_already_is_refused(own: Path, data: Path) -> None:
    change_config(own, quantization_config={"quant_method": "modelopt"})
    expect(UsageProblem, "quantized already", own, data)


def test_a_model_transformers_does_not_know_is_refused_and_its_code_is_not_run(own: Path, data: Path) -> None:
    change_config(own, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    (own / "modeling.py").write_text("raise SystemExit('this code was run')")
    expect(UsageProblem, "transformers cannot load the model", own, data)


def test_a_damaged_tokenizer_is_refused(own: Path, data: Path) -> None:
    (own / "tokenizer.json").write_text("{}")
    expect(UsageProblem, "cannot load the tokenizer", own, data)


def test_columns_that_do_not_divide_into_groups_are_named_with_the_way_out(
    model: Path, data: Path, tmp_path: Path
) -> None:
    make_llama(tmp_path / "odd", vocab_size=512, hidden_size=128, intermediate_size=192)
    for path in model.glob("token*"):
        shutil.copy(path, tmp_path / "odd")
    error = expect(
        UsageProblem, r"layers\.0\.mlp\.down_proj cannot be quantized", tmp_path / "odd", data, algorithm="int4_wo"
    )
    assert "192 columns" in error.why
    assert "'down_proj'" in error.fix
    calibrate(tmp_path / "odd", data, tmp_path / "way-out", algorithm="int4_wo", exclude=("lm_head", "down_proj"))


def test_held_out_text_shorter_than_a_window_is_refused(model: Path, tmp_path: Path) -> None:
    short = write_data(tmp_path, ["calibrate " * 40], ["short"])
    with pytest.raises(UsageProblem, match="held-out text is too short") as caught:
        calibrate(model, short, tmp_path / "out", algorithm="none")
    assert "heldout" in caught.value.fix


def test_texts_that_are_not_there_are_named(model: Path, tmp_path: Path) -> None:
    expect_from = tmp_path / "data"
    expect_from.mkdir()
    with pytest.raises(VerificationFailed, match=r"heldout\.jsonl is not a file of texts"):
        calibrate(model, expect_from, tmp_path / "out", algorithm="none")


def test_a_gpu_without_enough_memory_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(EnvironmentProblem, match="does not fit into the GPU's memory") as caught:
        load_model(model)
    assert "2.00 GiB" in caught.value.why


def test_a_full_disk_under_safetensors_is_an_error_of_the_disk(tmp_path: Path) -> None:
    message = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(EnvironmentProblem, match="cannot write") as caught, saving(tmp_path):
        raise SafetensorError(message)
    assert caught.value.why == "the disk is full"
    with pytest.raises(SafetensorError), saving(tmp_path):
        raise SafetensorError("Error while serializing: other")


def test_pickled_weights_are_loaded_as_data_and_written_as_safetensors(own: Path, data: Path, tmp_path: Path) -> None:
    original = load_file(own / "model.safetensors")
    torch.save(original, own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    made = calibrate(own, data, tmp_path / "out", algorithm="none")
    assert {name: tensor.shape for name, tensor in made.tensors.items()} == {
        name: tensor.shape for name, tensor in original.items()
    }


def test_shards_and_half_precision_are_kept_as_they_are(model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    random = make_llama(tmp_path / "random", vocab_size=512, hidden_size=128, intermediate_size=128)
    random.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    for path in model.glob("token*"):
        shutil.copy(path, folder)
    made = calibrate(folder, data, tmp_path / "out", algorithm="none")
    shards = sorted(path.name for path in folder.glob("model*"))
    assert len(shards) > 2
    assert all((made.folder / name).read_bytes() == (folder / name).read_bytes() for name in shards)
    quantized = calibrate(folder, data, tmp_path / "int8", algorithm="int8_sq")
    assert quantized.tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert quantized.tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")  # transformers' own use of tokenizers
def test_a_tokenizer_without_tokenizer_json_is_converted(own: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(own / "tokenizer.json"))
    tokenizer.model.save(str(own))  # vocab.json and merges.txt
    (own / "tokenizer.json").unlink()
    config = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    made = calibrate(own, data, tmp_path / "out", algorithm="none")
    text = "Return the value, or raise an error."
    converted = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    assert converted.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_the_newer_class_name_is_replaced(own: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.save_pretrained(own)
    assert "TokenizersBackend" in (own / "tokenizer_config.json").read_text()
    (tmp_path / "out").mkdir()
    checkpoint_folder.copy_tokenizer(own, tmp_path / "out", tokenizer)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
