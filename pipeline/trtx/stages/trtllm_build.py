"""The build step of TensorRT-LLM: the engine of trtllm-build, or the options file of the PyTorch flow."""

from __future__ import annotations

from typing import Any

from trtx.backends.tensorrt_llm.run_build import build
from trtx.stages.base import StepContext
from trtx.stages.params_trtllm import TrtllmBuildParams
from trtx.stages.trtllm_step import make_step


def run(params: TrtllmBuildParams, context: StepContext) -> dict[str, Any]:
    """Write the engine folder or the options file, with trtllm.json. Input in the engine flow: checkpoint."""
    return build(params.spec, make_step(context))
