"""The tensors of known models, by hand from the documents; and headers as the safetensors library reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.trtllm_specs import LLAMA_70B, MIXTRAL, QWEN2

from trtx.backends.tensorrt_llm.checkpoint.config import make_config
from trtx.backends.tensorrt_llm.checkpoint.formats import CheckpointFormat
from trtx.backends.tensorrt_llm.checkpoint.header import make_header, read_header
from trtx.backends.tensorrt_llm.checkpoint.layout import rank_tensors
from trtx.backends.tensorrt_llm.checkpoint.rank_file import RankFile
from trtx.backends.tensorrt_llm.checkpoint.share import make_share
from trtx.backends.tensorrt_llm.checkpoint.sizes import sizes_of_model, sizes_of_shape
from trtx.backends.tensorrt_llm.releases import Release, known_releases
from trtx.backends.tensorrt_llm.spec import Ranks, Shape
from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.config import read_model_config
from trtx.models.linear_layout import TensorSpec

# Heads that eight ranks can share; the model has 28.
QWEN = QWEN2.model_copy(update={"num_heads": 32})


def shapes(shape: Shape, form: CheckpointFormat, ranks: Ranks, rank: int = 0) -> dict[str, tuple[tuple[int, ...], str]]:
    tensors = rank_tensors(sizes_of_shape(shape), form, "bfloat16", ranks, rank)
    return {spec.name: (spec.shape, spec.dtype) for spec in tensors}


def test_llama_70b_in_fp8_on_four_ranks() -> None:
    form = CheckpointFormat(quant_algo="FP8", kv_cache="FP8")
    found = shapes(LLAMA_70B, form, Ranks(tensor=4))
    assert len(found) == 3 + 80 * (2 + 1 + 5 * 3)
    here = "transformer.layers.79"
    one, fp8 = ((1,), "float32"), "float8_e4m3fn"
    assert {name.removeprefix(f"{here}."): value for name, value in found.items() if name.startswith(f"{here}.")} == {
        "input_layernorm.weight": ((8192,), "bfloat16"),
        "post_layernorm.weight": ((8192,), "bfloat16"),
        "attention.qkv.weight": ((16 * 128 + 2 * 2 * 128, 8192), fp8),
        "attention.dense.weight": ((8192, 2048), fp8),
        "attention.kv_cache_scaling_factor": one,
        "mlp.fc.weight": ((7168, 8192), fp8),
        "mlp.gate.weight": ((7168, 8192), fp8),
        "mlp.proj.weight": ((8192, 7168), fp8),
        **{
            f"{module}.{which}_scaling_factor": one
            for module in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
            for which in ("weights", "activation")
        },
    }
    assert found["lm_head.weight"] == ((32064, 8192), "bfloat16")
    assert found["transformer.vocab_embedding.weight"] == ((32064, 8192), "bfloat16")


def test_llama_70b_in_int4_awq_on_eight_ranks() -> None:
    form = CheckpointFormat(quant_algo="W4A16_AWQ", pre_quant_scale=True)
    found = shapes(LLAMA_70B, form, Ranks(tensor=8))
    here = "transformer.layers.0"
    assert found[f"{here}.attention.qkv.weight"] == ((1280 // 2, 8192), "int8")
    assert found[f"{here}.attention.qkv.weights_scaling_factor"] == ((1280, 64), "float32")
    assert found[f"{here}.mlp.proj.weight"] == ((4096, 3584), "int8")
    assert found[f"{here}.mlp.proj.weights_scaling_factor"] == ((8192, 28), "float32")
    assert found[f"{here}.mlp.proj.prequant_scaling_factor"] == ((3584,), "bfloat16")


def test_weight_only_as_convert_checkpoint_packs_it() -> None:
    for algo, columns in (("W8A16", 8192), ("W4A16", 4096)):
        form = CheckpointFormat(quant_algo=algo, packed=True)
        found = shapes(LLAMA_70B, form, Ranks(tensor=4))
        assert found["transformer.layers.0.attention.dense.weight"] == ((2048, columns), "int8")
        assert found["transformer.layers.0.attention.dense.per_channel_scale"] == ((8192,), "bfloat16")
        mixture = shapes(MIXTRAL, form, Ranks(tensor=2))
        assert mixture["transformer.layers.0.mlp.proj.weight"] == ((8, 7168, columns // 2), "int8")
        assert mixture["transformer.layers.0.mlp.fc.per_channel_scale"] == ((8, 14336), "bfloat16")


def test_mixtral_in_fp8_with_two_groups_of_experts() -> None:
    found = shapes(MIXTRAL, CheckpointFormat(quant_algo="FP8"), Ranks(tensor=4, expert=2))
    here = "transformer.layers.3.mlp"
    assert found[f"{here}.router.weight"] == ((8, 4096), "float32")
    assert found[f"{here}.fc.weight"] == ((4, 2 * 7168, 4096), "float8_e4m3fn")
    assert found[f"{here}.proj.weight"] == ((4, 4096, 7168), "float8_e4m3fn")
    assert found[f"{here}.fc.weights_scaling_factor"] == ((4, 1), "float32")
    assert found[f"{here}.proj.activation_scaling_factor"] == ((1,), "float32")


def test_qwen2_has_biases_and_more_ranks_than_key_value_heads_repeat_them() -> None:
    found = shapes(QWEN, CheckpointFormat(), Ranks(tensor=8))
    assert found["transformer.layers.0.attention.qkv.weight"] == (((4 + 1 + 1) * 128, 3584), "bfloat16")
    assert found["transformer.layers.0.attention.qkv.bias"] == (((4 + 1 + 1) * 128,), "bfloat16")
    assert "transformer.layers.0.attention.dense.bias" not in found
    sizes = sizes_of_shape(QWEN)
    owners = [make_share(sizes, Ranks(tensor=8), rank).kv_heads for rank in range(8)]
    assert [owner.start for owner in owners] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_first_stages_have_a_layer_more_where_layers_do_not_divide() -> None:
    sizes = sizes_of_shape(LLAMA_70B)
    layers = [make_share(sizes, Ranks(tensor=2, pipeline=3), rank).layers for rank in range(6)]
    assert layers == [range(27), range(27), range(27, 54), range(27, 54), range(54, 80), range(54, 80)]
    first, last = (
        shapes(LLAMA_70B, CheckpointFormat(), Ranks(pipeline=3)),
        shapes(LLAMA_70B, CheckpointFormat(), Ranks(pipeline=3), 2),
    )
    assert "transformer.vocab_embedding.weight" in first
    assert "lm_head.weight" not in first
    assert "transformer.vocab_embedding.weight" not in last
    assert {"lm_head.weight", "transformer.ln_f.weight"} <= set(last)


def test_there_is_no_rank_beyond_the_last() -> None:
    with pytest.raises(UsageProblem, match="no rank file 4 among 2 × 2"):
        shapes(LLAMA_70B, CheckpointFormat(), Ranks(tensor=2, pipeline=2), 4)


def test_every_key_of_quantization_is_known_to_every_release() -> None:
    """The loader passes them as keyword arguments: one that it does not know ends trtllm-build."""
    model = read_model_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 8,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": 8,
        }
    )
    keys: set[str] = set()
    for algo in ("FP8", "W4A16_AWQ", "NVFP4", None):
        config = make_config(model, sizes_of_model(model), CheckpointFormat(quant_algo=algo), "float16", Ranks())
        keys |= set(config["quantization"])
    releases = [Release.load(version) for version in known_releases()]
    having = [release for release in releases if "QuantConfig" in release.schemas]
    assert len(having) >= 10
    for release in having:
        assert keys <= set(release.schema_fields("QuantConfig")), release.version


SPECS = [
    TensorSpec("bytes", (3,), "int8"),
    TensorSpec("fp8", (5, 1), "float8_e4m3fn"),
    TensorSpec("half", (1, 3), "bfloat16"),
    TensorSpec("scale", (1,), "float32"),
    TensorSpec("scalar", (), "float32"),
    TensorSpec("nothing", (0, 4), "float16"),
]


def test_headers_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "rank0.safetensors"
    values = {spec.name: torch.ones(spec.shape).to(getattr(torch, spec.dtype)) for spec in SPECS}
    with RankFile(path, SPECS) as file:
        for spec in reversed(SPECS):
            file.write(spec.name, values[spec.name])
    assert read_header(path) == {spec.name: spec for spec in SPECS}
    with safe_open(path, framework="pt") as stream:
        assert set(stream.keys()) == set(values)
        for name, value in values.items():
            found = stream.get_tensor(name)
            assert found.dtype == value.dtype
            assert torch.equal(found.float(), value.float())
    _, places = make_header(SPECS)
    widths = {"float32": 4, "bfloat16": 2, "float16": 2}
    assert all(place.start % widths.get(place.spec.dtype, 1) == 0 for place in places.values())


def test_a_rank_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rank0.safetensors"
    one = TensorSpec("a", (2,), "float32")
    with pytest.raises(ValueError, match="a was announced and not written"), RankFile(path, [one]):
        pass
    for tensor in (torch.ones(3), torch.ones(2, dtype=torch.float16)):
        with pytest.raises(ValueError, match="was written where the layout has"), RankFile(path, [one]) as file:
            file.write("a", tensor)
    with pytest.raises(ValueError, match="was written where the layout has"), RankFile(path, [one]) as file:
        file.write("a", torch.ones(2))
        file.write("a", torch.ones(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_safetensors_file_is_told_from_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="is missing"):
        read_header(tmp_path / "rank0.safetensors")
    for content in (b"", b"PK\3\4 and more", (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b'{"a"'):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(VerificationFailed, match="no whole safetensors file"):
            read_header(tmp_path / "x")
