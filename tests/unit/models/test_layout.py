from __future__ import annotations

import math
from typing import Any

import pytest

from trtx.errors import UsageProblem
from trtx.models.config import ModelConfig
from trtx.models.formats import QuantFormat
from trtx.models.layout import make_layout, make_shard

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=64,
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=256,
    norm_epsilon=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    dtype="float32",
)


def shapes(quantization: QuantFormat, **changes: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    layout = make_layout(CONFIG.model_copy(update=changes), quantization, "bfloat16")
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in layout.tensors}


def test_an_unquantized_layer_has_four_fused_weights_and_two_norms() -> None:
    found = shapes(QuantFormat())
    assert {name: shape for name, (shape, _) in found.items() if name.startswith("layers.0.")} == {
        "layers.0.attention_norm.weight": (256,),
        "layers.0.mlp_norm.weight": (256,),
        "layers.0.attention.qkv.weight": ((8 + 2 + 2) * 64, 256),
        "layers.0.attention.out.weight": (256, 512),
        "layers.0.mlp.gate_up.weight": (1024, 256),
        "layers.0.mlp.down.weight": (256, 512),
    }
    assert {dtype for _, dtype in found.values()} == {"bfloat16", "float32"}
    assert found["rope.inv_freq"] == ((32,), "float32")


@pytest.mark.parametrize(
    ("algorithm", "weight", "extras"),
    [
        ("fp8", ((256, 512), "float8_e4m3fn"), {"weight_scale": (256,), "input_scale": ()}),
        ("int8_sq", ((256, 512), "int8"), {"weight_scale": (256,), "input_scale": (), "pre_quant_scale": (512,)}),
        ("int8_wo", ((256, 512), "int8"), {"weight_scale": (256,)}),
        ("int4_wo", ((256, 256), "uint8"), {"weight_scale": (256, 4)}),
        ("int4_awq", ((256, 256), "uint8"), {"weight_scale": (256, 4), "pre_quant_scale": (512,)}),
    ],
)
def test_each_format_stores_its_scales_in_float32(algorithm: Any, weight: object, extras: dict[str, object]) -> None:
    found = shapes(QuantFormat(algorithm=algorithm))
    prefix = "layers.0.mlp.down."
    assert found.pop(prefix + "weight") == weight
    assert {name.removeprefix(prefix): spec for name, spec in found.items() if name.startswith(prefix)} == {
        name: (shape, "float32") for name, shape in extras.items()
    }


def test_excluded_layers_and_the_head_keep_the_engine_dtype() -> None:
    found = shapes(QuantFormat(algorithm="fp8", exclude=("layers.1.mlp.*",)))
    assert found["layers.1.mlp.down.weight"][1] == "bfloat16"
    assert found["layers.0.mlp.down.weight"][1] == "float8_e4m3fn"
    assert found["lm_head.weight"][1] == "bfloat16"


def test_a_part_of_a_fused_matrix_cannot_be_excluded_alone() -> None:
    with pytest.raises(UsageProblem, match=r"q_proj cannot be excluded from quantization alone"):
        shapes(QuantFormat(algorithm="fp8", exclude=("q_proj",)))


def test_a_tied_model_has_no_head_of_its_own() -> None:
    assert "lm_head.weight" not in shapes(QuantFormat(), tie_word_embeddings=True)


def test_an_fp8_cache_brings_two_scales_per_layer() -> None:
    found = shapes(QuantFormat(kv_cache="fp8"))
    assert found["layers.2.attention.k_scale"] == found["layers.2.attention.v_scale"] == ((), "float32")


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_every_rank_has_its_own_heads_and_the_key_value_heads_they_use(tensor: int) -> None:
    shards = [make_shard(CONFIG, tensor, 1, rank) for rank in range(tensor)]
    assert [head for shard in shards for head in shard.heads] == list(range(8))
    for shard in shards:
        used = {head * CONFIG.num_kv_heads // CONFIG.num_heads for head in shard.heads}
        assert set(shard.kv_heads) == used


def test_layers_are_spread_over_stages_when_they_do_not_divide() -> None:
    assert [list(make_shard(CONFIG, 2, 2, rank).layers) for rank in range(4)] == [[0, 1], [0, 1], [2], [2]]


def test_embedding_and_head_stand_where_they_are_used() -> None:
    def names(rank: int, tied: bool) -> set[str]:
        config = CONFIG.model_copy(update={"tie_word_embeddings": tied})
        return {tensor.name for tensor in make_layout(config, QuantFormat(), "float32", 1, 2, rank).tensors}

    assert "embed.weight" in names(0, tied=False)
    assert "embed.weight" not in names(1, tied=False)
    assert "embed.weight" in names(1, tied=True)
    assert {"lm_head.weight", "final_norm.weight"} <= names(1, tied=False)
    assert not {"lm_head.weight", "final_norm.weight"} & names(0, tied=False)


def test_ranks_together_hold_every_number_once() -> None:
    def count(tensor: int) -> int:
        total = 0
        for rank in range(tensor):
            layout = make_layout(CONFIG, QuantFormat(), "float32", tensor, 1, rank)
            total += sum(math.prod(t.shape) for t in layout.tensors if "layers" in t.name and "norm" not in t.name)
        return total

    assert count(1) == count(2)


@pytest.mark.parametrize(
    ("changes", "tensor", "message"),
    [
        ({"num_heads": 6}, 4, "6 attention heads"),
        ({"num_kv_heads": 3, "num_heads": 6}, 2, "3 key-value heads"),
        ({"intermediate_size": 510}, 4, "510 intermediate columns"),
        ({"vocab_size": 63}, 2, "63 vocabulary rows"),
    ],
)
def test_a_cut_that_does_not_divide_is_refused(changes: dict[str, int], tensor: int, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        make_shard(CONFIG.model_copy(update=changes), tensor, 1, 0)
    assert message in caught.value.render()


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UsageProblem, match="4 pipeline stages"):
        make_shard(CONFIG, 1, 4, 0)


def test_a_rank_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageProblem, match="no rank 2"):
        make_shard(CONFIG, 2, 1, 2)


def test_groups_must_divide_on_every_rank() -> None:
    quantization = QuantFormat(algorithm="int4_wo")
    make_layout(CONFIG, quantization, "float32", 4, 1, 0)
    with pytest.raises(UsageProblem, match="cannot be quantized with int4_wo") as caught:
        make_layout(CONFIG, quantization, "float32", 8, 1, 0)
    assert "64 input columns on a rank do not divide into groups of 128" in caught.value.why


@pytest.mark.parametrize("change", [{"norm_epsilon": 1e-6}, {"num_heads": 4, "head_dim": 128}, {"rope_theta": 5e5}])
def test_the_digest_tells_apart_models_whose_shapes_are_alike(change: dict[str, Any]) -> None:
    one = make_layout(CONFIG, QuantFormat(), "float32")
    other = make_layout(CONFIG.model_copy(update=change), QuantFormat(), "float32")
    assert one.sha256 != other.sha256


def test_the_digest_does_not_depend_on_how_the_checkpoint_was_stored_or_excludes_were_spelled() -> None:
    one = make_layout(CONFIG, QuantFormat(algorithm="fp8"), "bfloat16")
    stored = CONFIG.model_copy(update={"dtype": "bfloat16"})
    other = make_layout(stored, QuantFormat(algorithm="fp8", exclude=("lm_head", "model.embed_tokens")), "bfloat16")
    assert one == other
