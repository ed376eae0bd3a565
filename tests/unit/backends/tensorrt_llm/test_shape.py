"""Shapes of models are read from config.json alone, also of architectures that trtx does not compile."""

from __future__ import annotations

import pytest
from support.trtllm_recipes import MODELS

from trtx.backends.tensorrt_llm.shape import read_dtype, read_shape
from trtx.errors import UsageProblem

# What the safetensors indexes of these models on the hub count; DeepSeek-V3's is its paper's 671B (arXiv:2412.19437).
PUBLISHED = {"llama-8b": 8_030_261_248, "llama-70b": 70_553_706_496, "mixtral": 46_702_792_704}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_model(name: str) -> None:
    assert read_shape(MODELS[name]).num_parameters == PUBLISHED[name]


def test_latent_attention_and_experts_are_counted() -> None:
    shape = read_shape(MODELS["deepseek"])
    assert shape.num_parameters == pytest.approx(671e9, rel=1e-3)
    assert (shape.num_experts, shape.experts_per_token, shape.expert_size) == (256, 8, 2048)
    assert (shape.latent_channels, shape.head_dim, shape.draft_layers) == (576, 192, 1)


def test_biases_are_all_that_qwen_s_count_lacks() -> None:
    counted = read_shape(MODELS["qwen2"]).num_parameters
    biases = 28 * (28 + 2 * 4) * 128
    assert counted + biases == 7_615_616_512


def test_positions_have_the_factor_that_config_json_leaves_out() -> None:
    scaled = {**MODELS["mixtral"], "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert read_shape(scaled).rope_factor == 4.0
    assert read_shape(MODELS["llama-8b"]).rope_factor == 1.0
    assert read_shape(MODELS["deepseek"]).rope_factor == 1.0


@pytest.mark.parametrize(
    ("stored", "algorithm"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block_wo"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "awq"}, "int4_awq"),
        ({"quant_method": "gptq"}, "int4_gptq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes"}, "none"),
        (None, "none"),
    ],
)
def test_how_a_checkpoint_is_quantized_already_is_read(stored: dict[str, object] | None, algorithm: str) -> None:
    assert read_shape({**MODELS["llama-8b"], "quantization_config": stored}).stored_as == algorithm


def test_of_a_model_that_sees_the_language_model_counts() -> None:
    text = {name: value for name, value in MODELS["llama-8b"].items() if name != "architectures"}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    shape = read_shape(config)
    assert (shape.architecture, shape.hidden_size) == ("Gemma3ForConditionalGeneration", 4096)
    assert read_dtype(config) == "bfloat16"


@pytest.mark.parametrize("name", ["architectures", "vocab_size", "num_hidden_layers", "num_attention_heads"])
def test_a_size_that_is_missing_is_named(name: str) -> None:
    config = {key: value for key, value in MODELS["llama-8b"].items() if key != name}
    with pytest.raises(UsageProblem) as error:
        read_shape(config)
    assert name in error.value.why


def test_a_size_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageProblem, match="does not describe a model"):
        read_shape({**MODELS["llama-8b"], "vocab_size": "many"})


def test_other_spellings_of_sizes_are_known() -> None:
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}
    shape = read_shape({**gpt2, "n_positions": 1024, "tie_word_embeddings": True})
    assert (shape.hidden_size, shape.num_layers, shape.intermediate_size) == (768, 12, 3072)
    # 124.4M with positions and biases.
    assert shape.num_parameters == pytest.approx(123.6e6, rel=0.01)
