"""How formats of a folder become those of TensorRT-LLM: what is excluded, what hub checkpoints become, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import make_llama, write_format
from support.hub_checkpoints import make_gptq_pack, make_packed
from support.trtllm_folders import EXCLUDED, RELEASE, convert, make_folder, refuse

from trtx.backends.tensorrt_llm.checkpoint.plan import plan_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.read import read_weights
from trtx.backends.tensorrt_llm.checkpoint.write import write_checkpoint
from trtx.backends.tensorrt_llm.spec import Batching, Container, Device, Pool, Ranks, Shape, Sizes, TrtllmSpec
from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.formats import QuantFormat


@pytest.mark.parametrize(
    ("excluded", "pipeline", "patterns", "kept"),
    [
        (["lm_head", "o_proj"], 2, ["transformer.layers.*.attention.dense"], [0, 1, 2]),
        (["model.layers.1.self_attn.o_proj"], 1, ["transformer.layers.1.attention.dense"], [1]),
    ],
)
def test_excluded_modules_are_named_as_the_engine_names_them(
    tmp_path: Path, excluded: list[str], pipeline: int, patterns: list[str], kept: list[int]
) -> None:
    plain = make_folder(tmp_path / "plain", "LlamaForCausalLM")
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "fp8")
    tensors = dict(folder.tensors)
    for layer in kept:
        module = f"model.layers.{layer}.self_attn.o_proj"
        tensors = {name: t for name, t in tensors.items() if not name.startswith(module)}
        tensors[f"{module}.weight"] = plain.tensors[f"{module}.weight"]
    save_file(tensors, folder.path / "model.safetensors")
    write_format(folder.path, "fp8", exclude_modules=excluded)
    config = convert(folder.path, tmp_path / "out", Ranks(pipeline=pipeline))
    assert config["quantization"]["exclude_modules"] == [*EXCLUDED, *patterns]
    found = dict(read_weights(tmp_path / "out"))
    for layer in kept:
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        assert torch.equal(found[name], plain.tensors[name])


def test_weight_only_exclusions_also_name_tensors(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    wanted = QuantFormat(algorithm="int8_wo", exclude=("lm_head", "down_proj"))
    config = convert(tmp_path / "hf", tmp_path / "out", Ranks(), quantization=wanted)
    assert config["quantization"]["exclude_modules"][len(EXCLUDED) :] == [
        "transformer.layers.*.mlp.proj",
        "transformer.layers.*.mlp.proj.*weight",
    ]


def test_fp8_by_rows_is_excluded_by_whole_attentions_with_their_norm(tmp_path: Path) -> None:
    """fp8_rowwise_quantize of quantization/quantize.py replaces attentions, MLPs and the norms before them."""
    plain = make_folder(tmp_path / "plain", "LlamaForCausalLM")
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "fp8_dynamic")
    kept = ("k_proj", "o_proj", "q_proj", "v_proj")
    tensors = {name: t for name, t in folder.tensors.items() if not any(f"{each}." in name for each in kept)}
    tensors |= {name: t for name, t in plain.tensors.items() if any(f"{each}." in name for each in kept)}
    save_file(tensors, folder.path / "model.safetensors")
    write_format(folder.path, "fp8_dynamic", exclude_modules=[*kept, "lm_head"])
    config = convert(folder.path, tmp_path / "out", Ranks(tensor=2))
    assert config["quantization"]["exclude_modules"] == [
        *EXCLUDED,
        "transformer.layers.*.attention",
        "transformer.layers.*.input_layernorm",
    ]
    found = dict(read_weights(tmp_path / "out"))
    name = "model.layers.2.self_attn.k_proj.weight"
    assert torch.equal(found[name], plain.tensors[name])
    assert torch.equal(found["model.layers.2.mlp.up_proj.weight"], folder.weights["model.layers.2.mlp.up_proj.weight"])
    write_format(folder.path, "fp8_dynamic", exclude_modules=["o_proj", "lm_head"])
    error = refuse(folder.path, tmp_path / "part", Ranks())
    assert "attention.dense cannot be excluded from FP8_PER_CHANNEL_PER_TOKEN alone" in error.what


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_with_one_middle_point_has_the_groups_of_awq(tmp_path: Path, symmetric: bool) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": symmetric, "desc_act": False}
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    made = make_packed(tmp_path, config, make_gptq_pack(symmetric=symmetric), **sizes)
    if not symmetric:
        error = refuse(tmp_path, tmp_path / "out", Ranks())
        assert "int4_gptq with zero points cannot be written" in error.what
        return
    written = convert(tmp_path, tmp_path / "out", Ranks(tensor=2), dtype="float32")
    assert written["quantization"]["quant_algo"] == "W4A16_AWQ"
    assert not written["quantization"]["pre_quant_scale"]
    for name, value in read_weights(tmp_path / "out"):
        assert torch.allclose(value, made.weights[name].float(), rtol=1e-6, atol=1e-7), name


def test_fp8_with_a_scale_for_each_row_gets_one_for_all(tmp_path: Path) -> None:
    """The "channel" strategy of compressed-tensors with static inputs; TensorRT-LLM's FP8 has a scale for a matrix."""
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "fp8")
    tensors = dict(folder.tensors)
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        weight = folder.weights[name.replace("weight_scale", "weight")]
        scale = weight.abs().amax(1, keepdim=True) / 448
        tensors[name] = scale
        tensors[name.replace("weight_scale", "weight")] = (weight / scale).to(torch.float8_e4m3fn)
    save_file(tensors, folder.path / "model.safetensors")
    convert(folder.path, tmp_path / "out", Ranks(tensor=4))
    for name, value in read_weights(tmp_path / "out"):
        weight = folder.weights[name]
        # Rounded by its row's scale, then by the matrix's.
        assert ((value.float() - weight).abs() <= weight.abs() * 2**-3 + weight.abs().max() * 2**-9 / 448).all(), name


def make_spec() -> TrtllmSpec:
    """A recipe for the small Qwen2."""
    shape = Shape(
        architecture="Qwen2ForCausalLM",
        vocab_size=66,
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    return TrtllmSpec(
        release=RELEASE,
        flow="engine",
        container=Container(image="nvcr.io/nvidia/tensorrt-llm/release:1.2.1"),
        shape=shape,
        quantization=QuantFormat(algorithm="int8_wo", kv_cache="fp8"),
        dtype="float16",
        ranks=Ranks(tensor=2),
        device=Device(name="h100", sm=90, memory_bytes=80 << 30),
        sizes=Sizes(max_batch_size=8, max_num_tokens=64, max_seq_len=64),
        pool=Pool(tokens_per_block=32, memory_fraction=0.9, reuse=True),
        batching=Batching(policy="guaranteed-no-evict", chunked_context=True),
    )


def test_a_recipe_is_done_with_the_model_that_was_planned(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "Qwen2ForCausalLM")
    spec = make_spec()
    told: list[str] = []
    assert plan_checkpoint(spec).quant_algo == "W8A16"
    written = write_checkpoint(folder.path, tmp_path / "out", spec, told.append, lambda *_: None)
    assert (written["dtype"], written["quantization"]["quant_algo"]) == ("float16", "W8A16")
    assert written["quantization"]["kv_cache_quant_algo"] == "FP8"
    other = spec.model_copy(update={"shape": spec.shape.model_copy(update={"num_layers": 4})})
    with pytest.raises(VerificationFailed, match="not the model that was planned") as caught:
        write_checkpoint(folder.path, tmp_path / "other", other, told.append, lambda *_: None)
    assert caught.value.why == "its num_layers is 3, and the plan has 4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": Ranks(tensor=3)}, "cannot be cut into 3"),
        ({"quantization": QuantFormat(algorithm="mxfp8")}, "engine flow has no format for mxfp8"),
        ({"release": "0.16.0", "quantization": QuantFormat(algorithm="nvfp4")}, "0.16.0 has no quant_algo NVFP4"),
        ({"quantization": QuantFormat(algorithm="int4_awq")}, "W4A16_AWQ does not fit"),
        ({"quantization": QuantFormat(algorithm="fp8", exclude=("q_proj",))}, "cannot be excluded"),
        ({"architecture": "Gemma2ForCausalLM"}, "writes no TensorRT-LLM checkpoint of Gemma2ForCausalLM"),
    ],
)
def test_the_plan_refuses_what_the_writer_would(changes: dict[str, Any], message: str) -> None:
    spec = make_spec()
    if "architecture" in changes:
        changes = {"shape": spec.shape.model_copy(update=changes)}
    with pytest.raises(UsageProblem, match=message):
        plan_checkpoint(spec.model_copy(update=changes))
