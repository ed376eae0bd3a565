"""A TensorRT-LLM checkpoint folder as a step leaves it: config.json and one file a rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.spec import CheckpointSpec
from trtx.errors import StepFailed
from trtx.files import read_json

CONFIG_NAME = "config.json"


def rank_files(spec: CheckpointSpec, folder: Path) -> list[Path]:
    """Files of the ranks. Ranks of context parallelism share one: modeling_utils.py of 1.3.0rc3, rank // cp_size."""
    return [folder / f"rank{rank}.safetensors" for rank in range(spec.ranks.tensor * spec.ranks.pipeline)]


def describe_checkpoint(spec: CheckpointSpec, folder: Path) -> dict[str, Any]:
    """A summary of a checkpoint. Raises StepFailed when a tool left it without config.json or a rank's file."""
    try:
        config = read_json(folder / CONFIG_NAME)
        sizes = [path.stat().st_size for path in rank_files(spec, folder)]
    except (OSError, ValueError) as error:
        raise StepFailed(
            "the checkpoint is not whole",
            why=str(error),
            fix="the step's log has what the tool printed",
        ) from error
    quantization = config.get("quantization") or {}
    return {
        "algorithm": spec.quantization.algorithm,
        "quant_algo": quantization.get("quant_algo"),
        "kv_cache": quantization.get("kv_cache_quant_algo"),
        "ranks": len(sizes),
        "bytes": sum(sizes),
    }
