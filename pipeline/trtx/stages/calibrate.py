"""The calibrate step: model and texts → quantized checkpoint."""

from __future__ import annotations

from typing import Any

from trtx.quant.modelopt import quantize_checkpoint
from trtx.stages.base import StepContext
from trtx.stages.params import CalibrateParams


def run(params: CalibrateParams, context: StepContext) -> dict[str, Any]:
    """Quantize and measure. The summary holds perplexity and bits per byte, before and after."""
    report = quantize_checkpoint(
        context.inputs["model"],
        context.inputs["data"],
        context.output,
        params.quantization,
        max_length=params.max_length,
        batch_size=params.batch_size,
        seed=params.seed,
        say=context.say,
        progress=context.progress,
    )
    return {name: report[name] for name in ("perplexity", "bits_per_byte", "tokens", "device")}
