"""The convert step: checkpoint → weights in the engine's layout."""

from __future__ import annotations

from typing import Any

from trtx.backends.inductor.convert import convert
from trtx.models.formats import ALGORITHMS
from trtx.stages.base import StepContext
from trtx.stages.params import ConvertParams


def run(params: ConvertParams, context: StepContext) -> dict[str, Any]:
    """Write config.json, rankN.safetensors and tokenizer/. Input: checkpoint.

    Raises UsageProblem when the model cannot be converted this way, VerificationFailed for a damaged checkpoint.
    """
    config = convert(
        context.inputs["checkpoint"], context.output, params.dtype, params.tensor, params.pipeline, context.progress
    )
    sizes = [(context.output / rank.file).stat().st_size for rank in config.ranks]
    algorithm = config.quantization.algorithm
    dequantized = f", weights dequantized to {config.dtype}" if ALGORITHMS[algorithm].dequantized else ""
    context.say(f"{len(sizes)} rank file(s), {sum(sizes):,} bytes, format {algorithm}{dequantized}")
    return {
        "algorithm": algorithm,
        "kv_cache": config.quantization.kv_cache,
        "ranks": len(sizes),
        "bytes": sum(sizes),
    }
