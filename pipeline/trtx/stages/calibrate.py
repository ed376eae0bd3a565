"""The calibrate step: model and texts → quantized checkpoint."""

from __future__ import annotations

from typing import Any

from trtx.backends.inductor.keep import keep_checkpoint
from trtx.quant.modelopt import quantize_checkpoint
from trtx.quant.read_format import is_quantized
from trtx.stages.base import StepContext
from trtx.stages.params import CalibrateParams


def run(params: CalibrateParams, context: StepContext) -> dict[str, Any]:
    """Quantize and measure; a model that is quantized already is only measured.

    The summary holds perplexity and bits per byte, before and after.
    """
    model, data, output = context.inputs["model"], context.inputs["data"], context.output
    method: dict[str, Any] = {
        "max_length": params.max_length,
        "batch_size": params.batch_size,
        "say": context.say,
        "progress": context.progress,
    }
    if is_quantized(model):
        report = keep_checkpoint(model, data, output, params.quantization, **method)
    else:
        report = quantize_checkpoint(model, data, output, params.quantization, seed=params.seed, **method)
    return {name: report[name] for name in ("perplexity", "bits_per_byte", "tokens", "device")}
