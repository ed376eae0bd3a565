"""What the stand-in for trtllm-build refuses of a checkpoint: keys, files, and names, shapes and types of tensors.

Form: docs/source/legacy/architecture/checkpoint.md and modeling_utils.py of 1.3.0rc3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.releases import Release

REQUIRED = (
    "architecture",
    "dtype",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mapping",
    "quantization",
)


def find_problems(folder: Path, release: Release) -> list[str]:
    """What trtllm-build would refuse of a checkpoint of a dense Llama: keys, files, names, shapes and types."""
    config = json.loads((folder / "config.json").read_text())
    problems = [f"config.json has no {key}" for key in REQUIRED if key not in config]
    if problems:
        return problems
    if config["architecture"] not in release.architectures("engine"):
        problems.append(f"{config['architecture']} is not in MODEL_MAP")
    mapping = config["mapping"]
    tensor, pipeline = mapping["tp_size"], mapping["pp_size"]
    if mapping["world_size"] != tensor * pipeline * mapping.get("cp_size", 1):
        problems.append(f"world_size {mapping['world_size']} is not tp {tensor} * pp {pipeline} * cp")
    problems += find_more(folder, release)
    for rank in range(tensor * pipeline):
        file = folder / f"rank{rank}.safetensors"
        if not file.is_file():
            problems.append(f"{file.name} is missing")
        elif not config.get("num_experts") and not config.get("moe"):
            problems += check_rank(config, file, rank)
    return problems


def find_more(folder: Path, release: Release) -> list[str]:
    """What trtx's own check of checkpoints finds."""
    found = check_checkpoint(folder, release.version)
    return [f"{problem.file}: {problem.what}: {problem.why}" for problem in found if problem.severity == "error"]


def check_rank(config: Mapping[str, Any], file: Path, rank: int) -> list[str]:
    """Names, shapes and types of one rank's tensors, from the file's header."""
    with safe_open(file, framework="np") as source:
        found = {name: source.get_slice(name) for name in source.keys()}  # noqa: SIM118
        shapes = {name: (list(part.get_shape()), part.get_dtype()) for name, part in found.items()}
    tensor, pipeline = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = max(config.get("num_key_value_heads", heads), tensor)
    size = config.get("head_size") or hidden // heads
    inner = config["intermediate_size"] // tensor
    wanted = {
        "attention.qkv.weight": [(heads + 2 * kv_heads) // tensor * size, hidden],
        "attention.dense.weight": [hidden, heads * size // tensor],
        "mlp.fc.weight": [inner, hidden],
        "mlp.gate.weight": [inner, hidden],
        "mlp.proj.weight": [hidden, inner],
        "input_layernorm.weight": [hidden],
        "post_layernorm.weight": [hidden],
    }
    quant_algo = config["quantization"].get("quant_algo")
    dtype = {"FP8": "F8_E4M3", None: {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[config["dtype"]]}
    problems = []
    for layer in range(config["num_hidden_layers"] // pipeline):
        for name, shape in wanted.items():
            full = f"transformer.layers.{layer}.{name}"
            if full not in shapes:
                problems.append(f"{file.name} has no {full}")
                continue
            # Integer formats pack their weights, each in another way.
            if quant_algo in dtype and shapes[full][0] != shape:
                problems.append(f"{full} of {file.name} is {shapes[full][0]} and must be {shape}")
            if quant_algo in dtype and "norm" not in name and shapes[full][1] != dtype[quant_algo]:
                problems.append(f"{full} of {file.name} is {shapes[full][1]} and must be {dtype[quant_algo]}")
            if quant_algo == "FP8" and "norm" not in name:
                scales = [f"{full.removesuffix('weight')}{kind}_scaling_factor" for kind in ("weights", "activation")]
                problems += [f"{file.name} has no {scale}" for scale in scales if scale not in shapes]
    return problems
