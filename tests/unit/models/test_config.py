from __future__ import annotations

from typing import Any

import pytest

from trtx.errors import UsageProblem
from trtx.models.config import read_model_config

LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_config(**overrides: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        **overrides,
    }


def test_configs_of_transformers_4_and_5_describe_one_model() -> None:
    old = hf_config(rope_theta=500000, rope_scaling=LLAMA_31, torch_dtype="bfloat16")
    new = hf_config(rope_parameters={**LLAMA_31, "factor": 8, "rope_theta": 500000.0}, dtype="bfloat16")
    assert read_model_config(old) == read_model_config(new)


def test_the_oldest_spelling_of_a_scaling_is_read() -> None:
    config = read_model_config(hf_config(rope_scaling={"type": "linear", "factor": 2}))
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


def test_plain_rope_has_no_scaling() -> None:
    config = read_model_config(hf_config(rope_parameters={"rope_type": "default", "rope_theta": 20000.0}))
    assert (config.rope_scaling, config.rope_theta) == (None, 20000.0)


def test_heads_default_to_one_key_value_head_each() -> None:
    config = read_model_config(hf_config())
    assert (config.num_kv_heads, config.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architectures": ["LlamaForCausalLn"]}, "did you mean 'LlamaForCausalLM'"),
        ({"architectures": None}, "(none)"),
        ({"hidden_size": None}, "config.json does not describe a model"),
        ({"vocab_size": "many"}, "vocab_size: Input should be a valid integer"),
        ({"dtype": "float64"}, "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"head_dim": 15}, "4 attention heads of 15 channels"),
        ({"num_key_value_heads": 3}, "over 3 key-value heads"),
        ({"hidden_act": "quick_gelu"}, "the activation 'quick_gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "yarrn", "factor": 4.0}}, "type 'yarrn' is not supported"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "type 'proportional' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8}}, "lacks long_factor"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}},
            "longrope needs 8 factors",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        read_model_config(hf_config(**overrides))
    assert message in caught.value.render()


def test_a_missing_entry_is_named() -> None:
    config = hf_config()
    del config["vocab_size"]
    with pytest.raises(UsageProblem) as caught:
        read_model_config(config)
    assert caught.value.why == "it lacks 'vocab_size'"


@pytest.mark.parametrize(
    ("architecture", "overrides", "message"),
    [
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "layer_types": ["sliding_attention"]}, "has 1 entries"),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 2}, "of the kind"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
        ("Gemma2ForCausalLM", {"hidden_activation": "silu_and_mul"}, "'silu_and_mul' is not supported"),
        ("MixtralForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 3}, "3 of 2 experts"),
        ("GPT2LMHeadModel", {"n_embd": 8, "n_head": 2, "n_layer": 1, "add_cross_attention": True}, "cross_attention"),
        ("GPT2LMHeadModel", {"n_embd": 8, "n_head": 2, "scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
    ],
)
def test_features_that_an_architecture_may_have_and_trtx_has_not_are_named(
    architecture: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageProblem) as caught:
        read_model_config(hf_config(architectures=[architecture], **overrides))
    assert message in caught.value.render()


def test_the_window_of_a_qwen_is_in_its_upper_layers_and_only_when_used() -> None:
    def windows(**overrides: Any) -> tuple[int, ...]:
        return read_model_config(hf_config(architectures=["Qwen2ForCausalLM"], sliding_window=9, **overrides)).windows

    assert windows() == ()
    assert windows(use_sliding_window=True, max_window_layers=1) == (0, 9)
    assert windows(use_sliding_window=True, layer_types=["sliding_attention", "full_attention"]) == (9, 0)


def test_a_missing_window_of_a_mistral_is_4096_and_null_is_none() -> None:
    def windows(**overrides: Any) -> tuple[int, ...]:
        return read_model_config(hf_config(architectures=["MistralForCausalLM"], **overrides)).windows

    assert windows() == (4096, 4096)
    assert windows(sliding_window=None) == ()


def test_gemma_3_configs_of_transformers_4_and_5_describe_one_model() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    gemma = {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "num_hidden_layers": 6}
    old = hf_config(**gemma, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=linear, sliding_window_pattern=3)
    layer_types = (["sliding_attention"] * 2 + ["full_attention"]) * 2
    nested = {"full_attention": {**linear, "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    new = hf_config(**gemma, rope_parameters=nested, layer_types=layer_types)
    assert read_model_config(old) == read_model_config(new)
    assert read_model_config(new).windows == (4096, 4096, 0) * 2


def test_gpt_neox_configs_of_transformers_4_and_5_describe_one_model() -> None:
    neox = {"architectures": ["GPTNeoXForCausalLM"]}
    old = hf_config(**neox, rotary_pct=0.5, rotary_emb_base=500)
    new = hf_config(**neox, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 500})
    assert read_model_config(old) == read_model_config(new)
    assert read_model_config(new).rotary_dim == 8


def test_the_oldest_names_of_longrope_are_read() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    phi = {"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64}
    names = ("su", "yarn", "longrope")
    read = [read_model_config(hf_config(**phi, rope_scaling={"type": name, **factors})) for name in names]
    assert read[0] == read[1] == read[2]
