"""Checkpoints of AutoAWQ, GPTQ's tools and compressed-tensors: read, run, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.architectures import make_model
from support.checkpoints import Unified, make_llama, make_unified
from support.hub_checkpoints import Pack, make_awq_pack, make_gptq_pack, make_packed, write_config
from support.modules import convert_quietly, load_rank
from torch import Tensor

from trtx.backends.inductor.dequantized import read_dequantized
from trtx.errors import UsageProblem, VerificationFailed
from trtx.kernels.ops import Routing
from trtx.models.checkpoint import Checkpoint
from trtx.models.formats import QuantFormat
from trtx.quant.linear import Linear
from trtx.quant.read_format import is_quantized, read_quant_format

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
FP8_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
FP8_INPUTS = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
CT_GROUP = {"targets": ["Linear"], "weights": FP8_WEIGHTS, "input_activations": FP8_INPUTS}
CT = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": CT_GROUP},
}
PACKED: list[tuple[dict[str, Any], Pack]] = [
    (AWQ, make_awq_pack()),
    (AWQ | {"group_size": 32}, make_awq_pack(32)),
    (GPTQ, make_gptq_pack()),
    (GPTQ | {"group_size": 32, "sym": False}, make_gptq_pack(group=32, symmetric=False)),
    (GPTQ | {"group_size": -1}, make_gptq_pack(group=-1)),
    (GPTQ | {"group_size": -1, "desc_act": True}, make_gptq_pack(group=-1)),
    (GPTQ | {"group_size": 64, "desc_act": True}, make_gptq_pack(group=64, act_order=True)),
    (
        GPTQ | {"group_size": 64, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"},
        make_gptq_pack(group=64, symmetric=False, act_order=True, stored_zero=0),
    ),
    (GPTQ | {"bits": 8}, make_gptq_pack(bits=8)),
    (GPTQ | {"bits": 8, "group_size": -1}, make_gptq_pack(bits=8, group=-1)),
    (
        GPTQ | {"bits": 8, "group_size": 32, "sym": False, "desc_act": True},
        make_gptq_pack(bits=8, group=32, symmetric=False, act_order=True),
    ),
]


def describe(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


def read(folder: Path) -> QuantFormat:
    with Checkpoint(folder) as source:
        return read_quant_format(source)


def check_linears(checkpoint: Unified, folder: Path) -> dict[str, Tensor]:
    """The engine's linears compute with the weights that the checkpoint stands for. Returns the engine's tensors."""
    convert_quietly(checkpoint.folder, folder)
    module, tensors = load_rank(folder, 0)
    layer = module.layers["0"]
    fused: dict[Linear, tuple[str, ...]] = {
        layer.attention.qkv: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        layer.attention.out: ("self_attn.o_proj",),
        layer.mlp.gate_up: ("mlp.gate_proj", "mlp.up_proj"),
        layer.mlp.down: ("mlp.down_proj",),
    }
    for linear, sources in fused.items():
        weight = torch.cat([checkpoint.weights[f"model.layers.0.{source}.weight"] for source in sources])
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(linear(x), x @ weight.T, rtol=1e-4, atol=1e-4)
    return tensors


@pytest.mark.parametrize(("config", "pack"), PACKED, ids=[describe(config) for config, _ in PACKED])
def test_a_packed_checkpoint_runs_with_the_numbers_it_stands_for(
    tmp_path: Path, config: dict[str, Any], pack: Pack
) -> None:
    checkpoint = make_packed(tmp_path / "checkpoint", config, pack, **SHAPE)
    tensors = check_linears(checkpoint, tmp_path / "weights")
    if config.get("bits") == 4:
        assert tensors["layers.0.mlp.down.weight"].dtype == torch.uint8
        assert ("layers.0.mlp.down.weight_offset" in tensors) == (not config.get("sym", False))
        assert ("layers.0.mlp.down.input_order" in tensors) == (
            config.get("desc_act", False) and config["group_size"] > 0
        )


@pytest.mark.parametrize(("config", "pack"), PACKED, ids=[describe(config) for config, _ in PACKED])
def test_the_second_opinion_has_the_numbers_that_a_packed_checkpoint_stands_for(
    tmp_path: Path, config: dict[str, Any], pack: Pack
) -> None:
    checkpoint = make_packed(tmp_path, config, pack, **SHAPE)
    with Checkpoint(tmp_path) as source:
        found = dict(read_dequantized(source, read_quant_format(source)))
    assert set(found) == set(checkpoint.weights)
    for name, weight in found.items():
        torch.testing.assert_close(weight, checkpoint.weights[name])


def test_the_engine_s_format_is_found_in_the_packer_s_words(tmp_path: Path) -> None:
    found = read(make_packed(tmp_path / "awq", AWQ, make_awq_pack(), **SHAPE).folder)
    assert (found.algorithm, found.zero_points, found.packing) == ("int4_awq", True, "awq")
    found = read(
        make_packed(tmp_path / "gptq", GPTQ | {"bits": 8, "group_size": -1}, make_gptq_pack(bits=8, group=-1)).folder
    )
    assert found.algorithm == "int8_wo"
    assert set(found.exclude) == {"lm_head", "model.embed_tokens"}


def test_a_linear_that_was_kept_stays_plain(tmp_path: Path) -> None:
    config = AWQ | {"modules_to_not_convert": ["self_attn"]}
    checkpoint = make_packed(tmp_path / "checkpoint", config, make_awq_pack(), **SHAPE)
    plain = dict(make_llama(tmp_path / "plain", **SHAPE).state_dict())
    path = checkpoint.folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "self_attn" not in name}
    attention = {name: value.clone() for name, value in plain.items() if "self_attn" in name}
    save_file(tensors | attention, path)
    found = check_linears(Unified(checkpoint.folder, {}, checkpoint.weights | attention), tmp_path / "weights")
    assert found["layers.0.attention.qkv.weight"].dtype == torch.float32
    assert found["layers.0.mlp.down.weight"].dtype == torch.uint8


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "per token"])
def test_fp8_runs_as_compressed_tensors_computes_it(tmp_path: Path, strategy: str, dynamic: bool) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weights = QuantizationArgs(num_bits=8, type="float", strategy=strategy)
    inputs = QuantizationArgs(num_bits=8, type="float", strategy="token" if dynamic else "tensor", dynamic=dynamic)
    model, tensors = make_llama(tmp_path / "checkpoint", **SHAPE), {}
    linears: dict[str, tuple[Tensor, Tensor]] = {}
    for name, value in model.state_dict().items():
        tensors[name] = value.clone()
        if not name.endswith("_proj.weight"):
            continue
        axis = None if strategy == "tensor" else 1
        low, high = (value.amin(), value.amax()) if axis is None else (value.amin(1, True), value.amax(1, True))
        scale, zero = calculate_qparams(low.reshape(-1, 1), high.reshape(-1, 1), weights)
        scale = scale.reshape(1) if strategy == "tensor" else scale
        tensors[name] = quantize(value, scale, zero.reshape(scale.shape), weights, dtype=torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
        if not dynamic:
            tensors[name.replace("weight", "input_scale")] = torch.tensor([0.01])
        linears[name] = (tensors[name].float() * scale, scale)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "checkpoint/model.safetensors"
    )
    group = {
        "targets": ["Linear"],
        "weights": weights.model_dump(mode="json"),
        "input_activations": inputs.model_dump(mode="json"),
    }
    write_config(tmp_path / "checkpoint", CT | {"config_groups": {"group_0": group}})

    assert read(tmp_path / "checkpoint").algorithm == ("fp8_dynamic" if dynamic else "fp8")
    convert_quietly(tmp_path / "checkpoint", tmp_path / "weights")
    down = load_rank(tmp_path / "weights", 0)[0].layers["0"].mlp.down
    weight, _ = linears["model.layers.0.mlp.down_proj.weight"]
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    if dynamic:
        scale, zero = calculate_qparams(x.amin(1, True), x.amax(1, True), inputs)
    else:
        scale, zero = torch.tensor([0.01]), torch.zeros(1)
    expected = fake_quantize(x, scale, zero, inputs) @ weight.T
    torch.testing.assert_close(down(x), expected, rtol=1e-4, atol=1e-4)


def test_scales_of_a_kv_cache_are_found_under_both_names(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "c", "fp8", kv_cache="fp8", **SHAPE)
    path = checkpoint.folder / "model.safetensors"
    renamed = {
        name.replace("k_proj.k_scale", "k_scale").replace("v_proj.v_scale", "v_scale"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(renamed, path)
    (checkpoint.folder / "hf_quant_config.json").unlink()
    write_config(checkpoint.folder, CT | {"kv_cache_scheme": FP8_WEIGHTS})
    assert read(checkpoint.folder).kv_cache == "fp8"
    convert_quietly(checkpoint.folder, tmp_path / "w")
    found = load_rank(tmp_path / "w", 0)[1]["layers.0.attention.k_scale"]
    assert found == checkpoint.tensors["model.layers.0.self_attn.k_proj.k_scale"]


def test_modelopt_s_format_is_found_in_config_json_alone(tmp_path: Path) -> None:
    for algorithm in ("int4_wo", "nvfp4", "fp8_block_wo"):
        folder = make_unified(tmp_path / algorithm, algorithm, **SHAPE).folder
        said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
        (folder / "hf_quant_config.json").unlink()
        write_config(folder, {"quant_method": "modelopt", "quant_algo": said["quant_algo"], "ignore": ["lm_head"]})
        assert (read(folder).algorithm, read(folder).group_size) == (algorithm, None)


def test_groups_of_another_size_are_those_of_the_scales(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "c", "int4_wo", **SHAPE)
    path = checkpoint.folder / "model.safetensors"
    halved = {
        name: tensor.repeat_interleave(2, 1) if name.endswith("weight_scale") else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(halved, path)
    (checkpoint.folder / "hf_quant_config.json").unlink()
    write_config(checkpoint.folder, {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "ignore": ["lm_head"]})
    assert read(checkpoint.folder).group_size == 64
    check_linears(checkpoint, tmp_path / "w")


def test_one_format_for_some_layers_is_no_mixture(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path / "c", "int8_wo", **SHAPE)
    path = checkpoint.folder / "hf_quant_config.json"
    layers = {
        name.removesuffix(".weight_scale"): {"quant_algo": "W8A16"}
        for name in checkpoint.tensors
        if name.endswith("weight_scale")
    }
    facts = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    path.write_text(json.dumps({"quantization": facts}))
    check_linears(checkpoint, tmp_path / "w")
    layers[next(iter(layers))] = {"quant_algo": "FP8"}
    path.write_text(json.dumps({"quantization": facts}))
    with pytest.raises(UsageProblem, match=r"hf_quant_config.json says quantized_layers: FP8, W8A16"):
        read(checkpoint.folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "the quantization 'bitsandbytes' cannot be run"),
        (AWQ | {"bits": 8}, r"config.json says quantization_config.bits: 8"),
        (AWQ | {"version": "gemv"}, r"quantization_config.version: gemv"),
        (AWQ | {"group_size": 12}, r"quantization_config.group_size: 12"),
        (AWQ | {"modules_to_not_convert": ["mlp"]}, r"modules_to_not_convert: model.layers.0.mlp.down_proj"),
        (GPTQ | {"bits": 3}, r"quantization_config.bits: 3"),
        (GPTQ | {"checkpoint_format": "marlin"}, r"checkpoint_format: marlin"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, r"quantization_config.dynamic: \+:.*down"),
        (CT | {"format": "pack-quantized"}, r"quantization_config.format: pack-quantized"),
        (CT | {"config_groups": {}}, r"quantization_config.config_groups: 0"),
        (CT | {"config_groups": {"a": CT_GROUP | {"weights": FP8_WEIGHTS | {"num_bits": 4}}}}, "only FP8 is read"),
        (CT | {"config_groups": {"a": CT_GROUP | {"weights": FP8_WEIGHTS | {"strategy": "block"}}}}, "strategy: block"),
        (CT | {"config_groups": {"a": CT_GROUP | {"input_activations": None}}}, "input_activations: None"),
        (
            CT | {"config_groups": {"a": CT_GROUP | {"input_activations": FP8_INPUTS | {"dynamic": True}}}},
            "input_activations.strategy: tensor",
        ),
        (CT | {"kv_cache_scheme": FP8_WEIGHTS | {"strategy": "attn_head"}}, "quantization_config.kv_cache_scheme"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_by_file_and_key(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    checkpoint = make_packed(tmp_path, config, make_awq_pack(), **SHAPE)
    with pytest.raises(UsageProblem) as caught:
        read(checkpoint.folder)
    text = caught.value.render()
    assert re.search(message, text), text
    assert "config.json" in text


MODELOPT = {"quant_method": "modelopt"}


@pytest.mark.parametrize(
    "config",
    [
        "gptq",
        ["gptq"],
        {"quant_method": ["awq"]},
        MODELOPT | {"quant_algo": ["FP8"]},
        MODELOPT | {"quant_algo": "FP8", "kv_cache_scheme": ["FP8"]},
        MODELOPT | {"quant_algo": "FP8", "config_groups": [{}]},
        MODELOPT | {"quant_algo": "FP8", "ignore": 5},
        AWQ | {"modules_to_not_convert": [1]},
        GPTQ | {"dynamic": {"-:[": {}}},
        GPTQ | {"checkpoint_format": [1]},
        CT | {"config_groups": {"a": "x"}},
        CT | {"kv_cache_scheme": "FP8"},
    ],
    ids=str,
)
def test_a_description_of_another_shape_is_refused_and_named(tmp_path: Path, config: Any) -> None:
    checkpoint = make_packed(tmp_path, AWQ, make_awq_pack(), **SHAPE)
    write_config(checkpoint.folder, config)
    with pytest.raises((VerificationFailed, UsageProblem)) as caught:
        read(checkpoint.folder)
    assert "config.json" in caught.value.render()


def test_a_format_file_of_another_shape_is_refused_and_named(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path, "fp8", **SHAPE)
    for facts in ([], ["FP8"], {"quant_algo": "FP8", "exclude_modules": "lm_head"}):
        (checkpoint.folder / "hf_quant_config.json").write_text(json.dumps({"quantization": facts}))
        config = json.loads((checkpoint.folder / "config.json").read_bytes())
        config.pop("quantization_config", None)
        (checkpoint.folder / "config.json").write_text(json.dumps(config))
        assert is_quantized(checkpoint.folder) == bool(facts)
        with pytest.raises((VerificationFailed, UsageProblem), match=r"hf_quant_config\.json|not a whole checkpoint"):
            read(checkpoint.folder)


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    checkpoint = make_unified(tmp_path, "fp8", **SHAPE)
    for config in (AWQ, {"quant_method": "modelopt", "quant_algo": "W8A16"}):
        write_config(checkpoint.folder, config)
        with pytest.raises(UsageProblem, match=r"hf_quant_config.json says quant_algo 'FP8' and .*config.json says"):
            read(checkpoint.folder)


DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("config", "pack", "changes", "message"),
    [
        (GPTQ, make_gptq_pack(symmetric=False), {}, r"q_proj.qzeros in .* has zero points other than 8"),
        (
            GPTQ | {"group_size": 64},
            make_gptq_pack(group=64, act_order=True),
            {},
            r"q_proj.g_idx in .* does not divide",
        ),
        (GPTQ, make_gptq_pack(), {f"{DOWN}.g_idx": torch.zeros(256, dtype=torch.int32)}, r"down_proj.g_idx in .*"),
        (
            GPTQ,
            make_gptq_pack(),
            {f"{DOWN}.bias": torch.ones(128)},
            "down_proj has a bias that the engine would ignore",
        ),
        (GPTQ, make_gptq_pack(), {f"{DOWN}.qweight": torch.zeros(32, 128)}, "down_proj.qweight in .* is stored as F32"),
    ],
)
def test_a_packed_checkpoint_that_would_be_misread_is_refused(
    tmp_path: Path, config: dict[str, Any], pack: Pack, changes: dict[str, Tensor], message: str
) -> None:
    checkpoint = make_packed(tmp_path / "checkpoint", config, pack, **SHAPE)
    path = checkpoint.folder / "model.safetensors"
    save_file(load_file(path) | changes, path)
    with pytest.raises(VerificationFailed, match=message):
        convert_quietly(checkpoint.folder, tmp_path / "weights")


def test_biases_of_zeros_that_gptq_s_tools_write_are_no_error(tmp_path: Path) -> None:
    checkpoint = make_packed(tmp_path / "checkpoint", GPTQ, make_gptq_pack(), **SHAPE)
    path = checkpoint.folder / "model.safetensors"
    save_file(load_file(path) | {f"{DOWN}.bias": torch.zeros(128)}, path)
    check_linears(checkpoint, tmp_path / "weights")


@pytest.mark.parametrize(
    ("config", "pack"),
    [
        (AWQ, make_awq_pack()),
        (GPTQ | {"group_size": 32, "sym": False}, make_gptq_pack(group=32, symmetric=False)),
        (GPTQ | {"bits": 8}, make_gptq_pack(bits=8)),
        (GPTQ | {"bits": 8, "group_size": -1}, make_gptq_pack(bits=8, group=-1)),
    ],
    ids=["awq", "gptq with zero points", "gptq of 8 bits", "gptq of 8 bits, whole rows"],
)
def test_experts_of_the_hub_multiply_with_their_own_weights(tmp_path: Path, config: dict[str, Any], pack: Pack) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_model(tmp_path / "model", "MixtralForCausalLM", "experts", head_dim=64, num_key_value_heads=2, **sizes)
    tensors: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not module.endswith(("_proj", ".w1", ".w2", ".w3")):
            tensors[name] = weight
            continue
        packed, weights[module] = pack(weight)
        tensors |= {f"{module}.{key}": value.contiguous() for key, value in packed.items()}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    write_config(tmp_path / "model", config)
    convert_quietly(tmp_path / "model", tmp_path / "weights")
    experts = load_rank(tmp_path / "weights", 0)[0].layers["0"].mlp
    rows = torch.arange(12)
    starts = torch.tensor([0, 3, 3, 8, 12], dtype=torch.int32)
    numbers = torch.tensor([0] * 3 + [2] * 5 + [3] * 4)
    routing = Routing(torch.ones(12, 1), rows, rows, numbers, starts)
    for linear, names in ((experts.gate_up, ("w1", "w3")), (experts.down, ("w2",))):
        own = [f"model.layers.0.block_sparse_moe.experts.{{}}.{name}" for name in names]
        every = [torch.cat([weights[name.format(expert)] for name in own]) for expert in range(4)]
        x = torch.randn(12, every[0].shape[1], generator=torch.Generator().manual_seed(1))
        expected = torch.stack([row @ every[expert].T for row, expert in zip(x, numbers.tolist(), strict=True)])
        torch.testing.assert_close(linear(x, routing), expected, rtol=1e-4, atol=1e-4)
