"""What no engine could be made of is refused with its reason, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_llama, write_format
from support.trtllm_folders import convert, make_folder, refuse
from torch import Tensor

from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.formats import QuantFormat


def test_layers_that_differ_are_refused_where_stages_count_their_own(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "fp8")
    write_format(folder.path, "fp8", exclude_modules=["model.layers.0"])
    error = refuse(folder.path, tmp_path / "out", Ranks(pipeline=3))
    assert "differ in what is excluded do not go with 3 pipeline stages" in error.what
    write_format(folder.path, "fp8", exclude_modules=["q_proj"])
    assert "cannot be excluded from quantization alone" in refuse(folder.path, tmp_path / "out", Ranks()).what


@pytest.mark.parametrize(
    ("algorithm", "ranks", "options", "message"),
    [
        ("none", Ranks(tensor=3), {}, "cannot be cut into 3 tensor-parallel ranks"),
        ("none", Ranks(pipeline=4), {}, "cannot be cut into 4 pipeline stages"),
        ("none", Ranks(tensor=2, expert=2), {}, "expert parallelism 2 does not fit"),
        ("none", Ranks(pipeline=2), {"release": "0.16.0"}, "TensorRT-LLM 0.16.0 cannot divide 3 layers by 2"),
        ("none", Ranks(), {"quantization": QuantFormat(algorithm="fp8")}, "not quantized, and fp8 is asked for"),
        ("none", Ranks(), {"quantization": QuantFormat(kv_cache="int8")}, "no scales of an INT8 KV cache"),
        ("fp8", Ranks(), {"quantization": QuantFormat(algorithm="int8_sq")}, "quantized as fp8, and int8_sq is asked"),
        ("mxfp4", Ranks(), {}, "engine flow has no format for mxfp4"),
        ("nvfp4_awq", Ranks(), {}, "engine flow has no format for nvfp4_awq"),
        ("int4_awq", Ranks(tensor=4), {}, "W4A16_AWQ does not fit attention heads · head_dim 256 on 4"),
        ("nvfp4", Ranks(tensor=4), {}, "NVFP4 does not fit intermediate_size 96 on 4"),
        ("nvfp4", Ranks(), {"release": "0.16.0"}, "TensorRT-LLM 0.16.0 has no quant_algo NVFP4"),
    ],
)
def test_what_no_engine_could_be_made_of_is_refused(
    tmp_path: Path, algorithm: str, ranks: Ranks, options: dict[str, Any], message: str
) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", algorithm)
    error = refuse(folder.path, tmp_path / "out", ranks, **options)
    assert isinstance(error, UsageProblem)
    assert message in error.what
    assert error.why
    assert not list((tmp_path / "out").glob("*"))


def test_a_mixture_is_refused_in_formats_that_its_layer_has_not(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "MixtralForCausalLM", "int4_awq")
    assert "mixture of experts does not take W4A16_AWQ" in refuse(folder.path, tmp_path / "out", Ranks()).what


def test_architectures_without_known_tensors_are_refused(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    edit_config(tmp_path / "hf", architectures=["Qwen3ForCausalLM"])
    assert (
        "writes no TensorRT-LLM checkpoint of Qwen3ForCausalLM" in refuse(tmp_path / "hf", tmp_path / "o", Ranks()).what
    )


def test_rotary_scalings_are_written_or_refused_but_never_lost(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 128, "rope_theta": 500000.0}
    edit_config(tmp_path / "hf", rope_parameters=llama3)
    config = convert(tmp_path / "hf", tmp_path / "llama3", Ranks())
    assert config["rotary_base"] == 500000.0
    assert config["rotary_scaling"] == {key: llama3[key] for key in llama3 if key != "rope_theta"} | {"type": "llama3"}

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    edit_config(tmp_path / "hf", rope_parameters=yarn)
    config = convert(tmp_path / "hf", tmp_path / "yarn", Ranks())
    assert config["rotary_scaling"]["mscale"] == 1.0
    assert "attention_factor" not in config["rotary_scaling"]
    old = refuse(tmp_path / "hf", tmp_path / "old", Ranks(), release="0.16.0")
    assert "0.16.0 computes no yarn rotary scaling" in old.what
    edit_config(tmp_path / "hf", rope_parameters={**yarn, "attention_factor": 1.5})
    assert "attention_factor 1.5" in refuse(tmp_path / "hf", tmp_path / "own", Ranks()).what

    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    edit_config(tmp_path / "hf", rope_parameters={"rope_type": "longrope", **factors, "rope_theta": 1e4})
    assert "computes no longrope" in refuse(tmp_path / "hf", tmp_path / "long", Ranks()).what


def test_activations_that_would_be_computed_otherwise_are_refused(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf", hidden_act="gelu")
    assert "with gelu cannot be converted" in refuse(tmp_path / "hf", tmp_path / "out", Ranks()).what


def test_a_window_is_told_because_no_checkpoint_holds_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "MistralForCausalLM", sliding_window=48)
    told: list[str] = []
    convert(folder.path, tmp_path / "out", Ranks(), say=told.append)
    assert told == ["the model's attention sees 48 tokens: set max_attention_window_size to it where it is served"]


def test_ranks_of_context_parallelism_share_files(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    config = convert(tmp_path / "hf", tmp_path / "out", Ranks(tensor=2, context=2))
    assert config["mapping"] == {"world_size": 4, "tp_size": 2, "pp_size": 1, "cp_size": 2}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "rank0.safetensors",
        "rank1.safetensors",
    ]


def test_progress_counts_every_tensor_once(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    calls: list[tuple[int, int, str]] = []
    convert(tmp_path / "hf", tmp_path / "out", Ranks(tensor=2), progress=lambda *call: calls.append(call))
    total = sum(len(load_file(path)) for path in (tmp_path / "out").glob("*.safetensors"))
    assert calls[-1] == (total, total, "tensors")
    assert [done for done, _, _ in calls] == list(range(2, total + 1, 2))


def test_a_folder_with_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", Ranks())
    before = (tmp_path / "out" / "rank0.safetensors").read_bytes()
    assert "has a checkpoint already" in refuse(tmp_path / "hf", tmp_path / "out", Ranks(tensor=2)).what
    assert (tmp_path / "out" / "rank0.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("algorithm", "damage", "message"),
    [
        ("none", {"model.layers.1.mlp.up_proj.weight": None}, "no tensor model.layers.1.mlp.up_proj.weight"),
        ("fp8", {"model.layers.1.mlp.up_proj.weight_scale": None}, "no tensor model.layers.1.mlp.up_proj.weight_scale"),
        ("fp8", {"model.layers.1.self_attn.k_proj.input_scale": torch.tensor(3.0)}, "cannot be fused"),
        ("fp8", {"model.layers.1.mlp.up_proj.pre_quant_scale": torch.ones(64)}, "FP8 has no place for"),
        ("none", {"model.layers.2.mlp.up_proj.bias": torch.ones(96)}, "has a bias that the engine would ignore"),
        ("nvfp4", {"model.layers.0.self_attn.v_proj.weight_scale_2": torch.tensor(9.0)}, "cannot be fused"),
        (
            "int8_wo",
            {"model.layers.0.self_attn.v_proj.weight": torch.zeros(32, 64, dtype=torch.int16)},
            "stored as I16",
        ),
    ],
)
def test_damaged_folders_leave_no_checkpoint(
    tmp_path: Path, algorithm: str, damage: dict[str, Tensor | None], message: str
) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", algorithm)
    tensors = {name: value for name, value in (folder.tensors | damage).items() if value is not None}
    save_file(tensors, folder.path / "model.safetensors")
    with pytest.raises(VerificationFailed) as caught:
        convert(folder.path, tmp_path / "out", Ranks(tensor=2, pipeline=3))
    assert message in caught.value.what
    assert not list((tmp_path / "out").iterdir())


def edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
