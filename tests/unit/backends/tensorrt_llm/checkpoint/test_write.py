"""Checkpoints are read back, joined over their ranks and compared with the folder that they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import INT4, make_llama, write_format
from support.hub_checkpoints import make_gptq_pack, make_packed
from support.trtllm_folders import Folder, make_folder
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.read import read_weights
from trtx.backends.tensorrt_llm.checkpoint.write import convert_folder, write_checkpoint
from trtx.backends.tensorrt_llm.spec import Batching, Container, Device, Pool, Ranks, Shape, Sizes, TrtllmSpec
from trtx.errors import TrtxError, UsageProblem, VerificationFailed
from trtx.models.formats import WHOLE_ROW, QuantFormat

RELEASE = "1.2.1"
# (tp, pp): alone, cut, more ranks than key-value heads, uneven stages, both.
DENSE_RANKS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 3))
GROUPED_RANKS = ((1, 1), (2, 1), (1, 2), (2, 3))
# (tp, pp, ep)
MIXTURE_RANKS = ((1, 1, 1), (2, 1, 1), (4, 1, 2), (4, 1, 4), (2, 2, 2), (4, 3, 1))
# Algorithm → the largest error of a number, as shares of the number and of the largest number of its row. bfloat16
# rounds to 2^-9; e4m3 to 2^-4, where a fused matrix takes another's scale, or to its least step, 2^-9 of 448.
EXACT = (0.0, 0.0)
ERRORS = {
    "none": EXACT,
    "fp8": (2**-4 * 1.0001, 2**-9 / 448),
    "fp8_dynamic": EXACT,
    "int8_sq": EXACT,
    "int8_wo": (2**-8, 0.0),
    "int4_wo": EXACT,
    "int4_awq": EXACT,
    "w4a8_awq": EXACT,
    "nvfp4": EXACT,
}
EXCLUDED = ["*lm_head", "*router", "*vocab_embedding", "*ln_f"]
KV_CACHES = {"fp8": "fp8", "int8_sq": "int8"}


def convert(source: Path, output: Path, ranks: Ranks, **options: Any) -> dict[str, Any]:
    settings = {"release": RELEASE, "dtype": "bfloat16", **options}
    return convert_folder(source, output, ranks=ranks, **settings)


def assert_same_weights(folder: Folder, output: Path, algorithm: str) -> None:
    share, least = ERRORS[algorithm]
    found = {name: value for name, value in read_weights(output) if not name.endswith(("k_scale", "v_scale"))}
    expected = dict(folder.weights)
    if "lm_head.weight" not in expected:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        weight = expected[name]
        assert value.shape == weight.shape, name
        bound = share * weight.abs() + least * weight.abs().amax(-1, keepdim=True)
        excess = (value.float() - weight).abs() - bound
        assert excess.max() <= 0, f"{name} is {excess.max()} beyond its bound"


# Mistral's tensors are Llama's.
DENSE = [(name, algorithm) for name in ("LlamaForCausalLM", "Qwen2ForCausalLM") for algorithm in ERRORS]
DENSE += [("MistralForCausalLM", "none"), ("MistralForCausalLM", "int4_awq")]


@pytest.mark.parametrize(("architecture", "algorithm"), DENSE)
def test_a_dense_model_comes_back_whatever_its_ranks(tmp_path: Path, architecture: str, algorithm: str) -> None:
    folder = make_folder(tmp_path / "hf", architecture, algorithm, kv_cache=KV_CACHES.get(algorithm, "auto"))
    for tensor, pipeline in GROUPED_RANKS if algorithm in (*INT4, "nvfp4") else DENSE_RANKS:
        output = tmp_path / f"{tensor}-{pipeline}"
        convert(folder.path, output, Ranks(tensor=tensor, pipeline=pipeline))
        assert len(list(output.glob("rank*.safetensors"))) == tensor * pipeline
        assert check_checkpoint(output, RELEASE) == []
        assert_same_weights(folder, output, algorithm)


@pytest.mark.parametrize("algorithm", ["none", "int8_wo", "fp8"])
def test_a_mixture_comes_back_whatever_its_ranks(tmp_path: Path, algorithm: str) -> None:
    kv_cache = KV_CACHES.get(algorithm, "auto")
    folder = make_folder(tmp_path / "hf", "MixtralForCausalLM", algorithm, kv_cache=kv_cache)
    for tensor, pipeline, expert in MIXTURE_RANKS:
        output = tmp_path / f"{tensor}-{pipeline}-{expert}"
        convert(folder.path, output, Ranks(tensor=tensor, pipeline=pipeline, expert=expert))
        assert check_checkpoint(output, RELEASE) == []
        assert_same_weights(folder, output, algorithm)


def test_experts_go_to_the_ranks_that_the_mapping_of_tensorrt_llm_names(tmp_path: Path) -> None:
    """tensorrt_llm/mapping.py: with tp 4 and ep 2, rank t has experts by t mod 2 and columns of them by t div 2."""
    folder = make_folder(tmp_path / "hf", "MixtralForCausalLM")
    config = convert(folder.path, tmp_path / "out", Ranks(tensor=4, expert=2))
    assert config["mapping"] == {"world_size": 4, "tp_size": 4, "pp_size": 1, "moe_tp_size": 2, "moe_ep_size": 2}
    assert config["hidden_act"] == "swiglu"
    assert config["moe"] == {"num_experts": 4, "top_k": 2, "normalization_mode": 1}
    for rank, (experts, rows) in enumerate(
        [((0, 1), (0, 48)), ((2, 3), (0, 48)), ((0, 1), (48, 96)), ((2, 3), (48, 96))]
    ):
        tensors = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for number, expert in enumerate(experts):
            here = f"model.layers.1.block_sparse_moe.experts.{expert}"
            up, gate = (folder.tensors[f"{here}.{name}.weight"][slice(*rows)] for name in ("w3", "w1"))
            fc = tensors["transformer.layers.1.mlp.fc.weight"][number]
            assert torch.equal(fc, torch.cat([up, gate]))
            down = folder.tensors[f"{here}.w2.weight"][:, slice(*rows)]
            assert torch.equal(tensors["transformer.layers.1.mlp.proj.weight"][number], down)
        router = tensors["transformer.layers.1.mlp.router.weight"]
        assert router.dtype == torch.float32
        assert torch.equal(router, folder.tensors["model.layers.1.block_sparse_moe.gate.weight"].float())


def test_the_gate_of_an_mlp_is_fc_and_layers_are_counted_from_the_first_of_the_stage(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", attention_bias=True, mlp_bias=True)
    convert(folder.path, tmp_path / "out", Ranks(tensor=2, pipeline=2))
    tensors = load_file(tmp_path / "out" / "rank3.safetensors")  # the second half of the third layer
    here, there = "transformer.layers.0", "model.layers.2"
    assert {name.split(".")[2] for name in tensors if name.startswith("transformer.layers")} == {"0"}
    assert torch.equal(tensors[f"{here}.mlp.fc.weight"], folder.tensors[f"{there}.mlp.gate_proj.weight"][48:])
    assert torch.equal(tensors[f"{here}.mlp.gate.bias"], folder.tensors[f"{there}.mlp.up_proj.bias"][48:])
    # What every rank adds after the sum over the ranks is whole on each.
    assert torch.equal(tensors[f"{here}.attention.dense.bias"], folder.tensors[f"{there}.self_attn.o_proj.bias"])
    assert_same_weights(folder, tmp_path / "out", "none")


def test_a_vocabulary_that_does_not_divide_is_filled_with_zeros(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "Qwen2ForCausalLM", tie_word_embeddings=True)
    config = convert(folder.path, tmp_path / "out", Ranks(tensor=4))
    assert config["vocab_size"] == 66
    embed = folder.tensors["model.embed_tokens.weight"]
    last = load_file(tmp_path / "out" / "rank3.safetensors")
    for name in ("lm_head.weight", "transformer.vocab_embedding.weight"):
        assert last[name].shape == (17, 64)
        assert torch.equal(last[name][:15], embed[51:])
        assert not last[name][15:].any()
    assert_same_weights(folder, tmp_path / "out", "none")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_folder_is_written_in_the_dtype_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    model = make_llama(tmp_path / "hf")
    assert convert(tmp_path / "hf", tmp_path / "out", Ranks(tensor=2), dtype=dtype)["dtype"] == dtype
    wanted = getattr(torch, dtype)
    for name, value in read_weights(tmp_path / "out"):
        assert torch.equal(value, model.state_dict()[name].to(wanted)), name


def test_sharded_folders_are_read_over_all_their_files(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "hf", shards="40KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    convert(tmp_path / "hf", tmp_path / "out", Ranks(pipeline=2), dtype="float32")
    found = dict(read_weights(tmp_path / "out"))
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_plain_weights_are_quantized_to_int8_by_trtllm_build_itself(tmp_path: Path) -> None:
    """Whose rounding is to amax / 128: kernels/cutlass_kernels/cutlass_preprocessors.cpp."""
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM")
    told: list[str] = []
    wanted = QuantFormat(algorithm="int8_wo")
    config = convert(folder.path, tmp_path / "out", Ranks(tensor=2), quantization=wanted, say=told.append)
    assert config["quantization"]["quant_algo"] == "W8A16"
    assert told == ["W8A16: the weights are written as bfloat16; trtllm-build packs them for its GPU"]
    assert_same_weights(folder, tmp_path / "out", "none")
    for algorithm, group, algo in (("int8_wo", None, "W8A16"), ("int4_wo", WHOLE_ROW, "W4A16")):
        wanted = QuantFormat(algorithm=algorithm, group_size=group)
        config = convert(folder.path, tmp_path / algo, Ranks(pipeline=3), quantization=wanted)
        assert config["quantization"]["quant_algo"] == algo


def test_int8_numbers_of_a_folder_move_by_less_than_a_step_in_trtllm_build(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "int8_wo")
    convert(folder.path, tmp_path / "out", Ranks())
    found = dict(read_weights(tmp_path / "out"))
    for name in (name for name in found if name.endswith("_proj.weight")):
        rows = found[name].float()
        scale = rows.abs().amax(1, keepdim=True) / 128
        built = (rows / scale).round().clamp(-128, 127) * scale
        step = folder.tensors[name.replace(".weight", ".weight_scale")][:, None]
        assert ((built - folder.weights[name]).abs() <= step * 1.01).all()


def test_plain_weights_are_rounded_to_int4_in_groups(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", hidden_size=256, intermediate_size=512)
    wanted = QuantFormat(algorithm="int4_wo")
    config = convert(folder.path, tmp_path / "out", Ranks(tensor=2), quantization=wanted)
    assert config["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": EXCLUDED,
    }
    for name, value in read_weights(tmp_path / "out"):
        weight = folder.weights[name]
        if not name.endswith("_proj.weight"):
            assert torch.equal(value.float(), weight)
            continue
        half = weight.unflatten(1, (-1, 128)).abs().amax(-1) / 7 / 2
        assert ((value - weight).abs() <= half.repeat_interleave(128, 1) * 1.0001).all()


def test_fused_matrices_of_fp8_have_the_largest_of_their_scales(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "fp8", kv_cache="fp8")
    convert(folder.path, tmp_path / "out", Ranks(tensor=2))
    here, there = "transformer.layers.0.attention", "model.layers.0.self_attn"
    scales = {which: folder.tensors[f"{there}.{which}_proj.weight_scale"] for which in "qkv"}
    largest = max(scales.values())
    for rank in range(2):
        tensors = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        assert tensors[f"{here}.qkv.weights_scaling_factor"].tolist() == [largest]
        # The matrix whose scale it is keeps its numbers, bit by bit.
        which = max(scales, key=lambda key: scales[key])
        size, start = (32, 0) if which == "q" else (16, {"k": 32, "v": 48}[which])
        rows = folder.tensors[f"{there}.{which}_proj.weight"][rank * size : (rank + 1) * size]
        assert torch.equal(_bytes(tensors[f"{here}.qkv.weight"][start : start + size]), _bytes(rows))
        # Scales of the cache are at least 1, as in NVIDIA's converters.
        assert tensors[f"{here}.kv_cache_scaling_factor"].tolist() == [1.0]


def test_the_scale_of_an_int8_cache_is_the_larger_of_keys_and_values(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "int8_sq", kv_cache="int8")
    convert(folder.path, tmp_path / "out", Ranks())
    found = load_file(tmp_path / "out" / "rank0.safetensors")["transformer.layers.1.attention.kv_cache_scaling_factor"]
    here = "model.layers.1.self_attn"
    assert found == max(folder.tensors[f"{here}.{which}_proj.{which}_scale"] for which in "kv")


def test_an_fp8_cache_needs_no_calibration(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    config = convert(tmp_path / "hf", tmp_path / "out", Ranks(), quantization=QuantFormat(kv_cache="fp8"))
    assert config["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    found = load_file(tmp_path / "out" / "rank0.safetensors")["transformer.layers.0.attention.kv_cache_scaling_factor"]
    assert found.tolist() == [1.0]


def test_experts_that_calibration_never_met_do_not_matter(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "MixtralForCausalLM", "fp8")
    expert = "model.layers.0.block_sparse_moe.experts"
    tensors = {name: t for name, t in folder.tensors.items() if name != f"{expert}.2.w2.input_scale"}
    tensors[f"{expert}.1.w2.input_scale"] = torch.tensor(0.5)
    save_file(tensors, folder.path / "model.safetensors")
    convert(folder.path, tmp_path / "out", Ranks(tensor=4, expert=4))
    for rank in range(4):
        found = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        assert found["transformer.layers.0.mlp.proj.activation_scaling_factor"].tolist() == [0.5]


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


def test_a_recipe_is_done_with_the_model_that_was_planned(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "Qwen2ForCausalLM")
    config = json.loads((folder.path / "config.json").read_text())
    shape = Shape(
        architecture="Qwen2ForCausalLM",
        vocab_size=66,
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=config["max_position_embeddings"],
    )
    spec = TrtllmSpec(
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
    told: list[str] = []
    written = write_checkpoint(folder.path, tmp_path / "out", spec, told.append, lambda *_: None)
    assert (written["dtype"], written["quantization"]["quant_algo"]) == ("float16", "W8A16")
    assert written["quantization"]["kv_cache_quant_algo"] == "FP8"
    other = spec.model_copy(update={"shape": shape.model_copy(update={"num_layers": 4})})
    with pytest.raises(VerificationFailed, match="not the model that was planned") as caught:
        write_checkpoint(folder.path, tmp_path / "other", other, told.append, lambda *_: None)
    assert caught.value.why == "its num_layers is 3, and the plan has 4"


def refuse(source: Path, output: Path, ranks: Ranks, **options: Any) -> TrtxError:
    with pytest.raises(TrtxError) as caught:
        convert(source, output, ranks, **options)
    return caught.value


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
    _edit_config(tmp_path / "hf", architectures=["Qwen3ForCausalLM"])
    assert (
        "writes no TensorRT-LLM checkpoint of Qwen3ForCausalLM" in refuse(tmp_path / "hf", tmp_path / "o", Ranks()).what
    )


def test_rotary_scalings_are_written_or_refused_but_never_lost(tmp_path: Path) -> None:
    make_llama(tmp_path / "hf")
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 128, "rope_theta": 500000.0}
    _edit_config(tmp_path / "hf", rope_parameters=llama3)
    config = convert(tmp_path / "hf", tmp_path / "llama3", Ranks())
    assert config["rotary_base"] == 500000.0
    assert config["rotary_scaling"] == {key: llama3[key] for key in llama3 if key != "rope_theta"} | {"type": "llama3"}

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    _edit_config(tmp_path / "hf", rope_parameters=yarn)
    config = convert(tmp_path / "hf", tmp_path / "yarn", Ranks())
    assert config["rotary_scaling"]["mscale"] == 1.0
    assert "attention_factor" not in config["rotary_scaling"]
    old = refuse(tmp_path / "hf", tmp_path / "old", Ranks(), release="0.16.0")
    assert "0.16.0 computes no yarn rotary scaling" in old.what
    _edit_config(tmp_path / "hf", rope_parameters={**yarn, "attention_factor": 1.5})
    assert "attention_factor 1.5" in refuse(tmp_path / "hf", tmp_path / "own", Ranks()).what

    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    _edit_config(tmp_path / "hf", rope_parameters={"rope_type": "longrope", **factors, "rope_theta": 1e4})
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
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def _edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)
