"""Checkpoints are read back, joined over their ranks and compared with the folder that they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import INT4, make_llama
from support.trtllm_folders import EXCLUDED, RELEASE, Folder, convert, make_folder
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.read import read_weights
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.models.formats import WHOLE_ROW, QuantFormat

# (tp, pp): alone, cut, more ranks than key-value heads, uneven stages, both.
DENSE_RANKS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 3))
GROUPED_RANKS = ((1, 1), (2, 1), (1, 2), (2, 3))
# (tp, pp, ep)
MIXTURE_RANKS = ((1, 1, 1), (2, 1, 1), (4, 1, 2), (4, 1, 4), (2, 2, 2), (4, 3, 1))
# Algorithm → the largest error of a number, as shares of the number and of the largest number of its row. bfloat16
# rounds to 2^-8; e4m3 to 2^-4, where a fused matrix takes another's scale, or to its least step, 2^-9 of 448.
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
KV_CACHES = {"fp8": "fp8", "int8_sq": "int8"}


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


def test_int8_numbers_of_a_folder_move_by_little_in_trtllm_build(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hf", "LlamaForCausalLM", "int8_wo")
    told: list[str] = []
    convert(folder.path, tmp_path / "out", Ranks(), say=told.append)
    assert "rounds the folder's INT8 numbers again: convert the unquantized folder" in told[0]
    found = dict(read_weights(tmp_path / "out"))
    for name in (name for name in found if name.endswith("_proj.weight")):
        rows = found[name].float()
        scale = rows.abs().amax(1, keepdim=True) / 128
        built = (rows / scale).round().clamp(-128, 127) * scale
        step = folder.tensors[name.replace(".weight", ".weight_scale")][:, None]
        moved = (built - folder.weights[name]).abs() / step
        # Half a step of its own, and half a one that bfloat16 takes of the largest numbers. The largest positive one
        # would be 128 steps, and 127 is as far as int8 goes.
        cut = rows / scale > 127.5
        assert (moved[~cut] <= 1.0).all()
        assert (moved[cut] <= 1.5).all()


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


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)
