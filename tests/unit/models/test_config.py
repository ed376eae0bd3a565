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
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
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
