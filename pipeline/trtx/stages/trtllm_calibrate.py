"""The calibrate step of TensorRT-LLM: quantize.py of the release, on a GPU in its container."""

from __future__ import annotations

from typing import Any

from trtx.backends.tensorrt_llm.run_calibrate import calibrate
from trtx.stages.base import StepContext
from trtx.stages.params_trtllm import TrtllmCalibrateParams
from trtx.stages.trtllm_step import make_step


def run(params: TrtllmCalibrateParams, context: StepContext) -> dict[str, Any]:
    """Write a TensorRT-LLM checkpoint. Inputs: model, and data where activations are observed."""
    return calibrate(
        params.spec,
        make_step(context),
        samples=params.samples,
        max_length=params.max_length,
        batch_size=params.batch_size,
        seed=params.seed,
    )
