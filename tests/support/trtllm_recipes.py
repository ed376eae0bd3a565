"""Folders that look like published models (their config.json has the published sizes), and recipes that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtx.hardware import support
from trtx.plan.check_tensorrt_llm import find_problems
from trtx.plan.facts import Facts
from trtx.plan.releases import load_releases
from trtx.plan.resolve import model_name
from trtx.recipe.checks import check_recipe
from trtx.recipe.load import LoadedRecipe, parse_recipe
from trtx.recipe.problems import Problem, RecipeInvalid

# Published sizes: config.json of meta-llama/Llama-3.1-8B and -70B, mistralai/Mixtral-8x7B-v0.1, deepseek-ai/DeepSeek-V3
# and Qwen/Qwen2-7B; the odd ones have a size that ranks do not share.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-8b": LLAMA,
    "llama-70b": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "mixtral": {
        **{name: LLAMA[name] for name in LLAMA if name != "rope_scaling"},
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1000000.0,
    },
    "deepseek": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
        "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
    },
    "qwen2": {
        **{name: LLAMA[name] for name in LLAMA if name != "rope_scaling"},
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
MODELS |= {
    "phi3": {**LLAMA, "architectures": ["Phi3ForCausalLM"]},
    "odd-llama": {**LLAMA, "vocab_size": 32001},
    "odd-mixtral": {**MODELS["mixtral"], "intermediate_size": 14340},
}


def write_model(folder: Path, name: str) -> Path:
    """A folder that a file:// source takes for a model; its weights are never read."""
    model = folder / name
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(MODELS[name]))
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (model / "tokenizer.json").write_text("{}")
    return model


def find_all(
    text: str, model: str | None, facts: Facts | None = None, folder: Path = Path()
) -> tuple[LoadedRecipe | None, list[Problem]]:
    """Everything that validation and planning say about a recipe whose model has the config.json of MODELS."""
    try:
        loaded = parse_recipe(folder / "recipe.yaml", text)
    except RecipeInvalid as error:
        return None, list(error.problems)
    found = check_recipe(loaded, support)
    if any(problem.severity == "error" for problem in found):
        return loaded, found
    cells = loaded.cells()
    configs = {model_name(cell.recipe.model): MODELS[model] if model else None for cell in cells}
    try:
        releases = load_releases(loaded, cells)
    except RecipeInvalid as error:
        return loaded, [*found, *error.problems]
    return loaded, [*found, *find_problems(loaded, cells, releases, configs, facts)]
