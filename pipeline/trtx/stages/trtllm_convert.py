"""The convert step of TensorRT-LLM: a Hugging Face checkpoint into the one that trtllm-build reads."""

from __future__ import annotations

from typing import Any

from trtx.backends.tensorrt_llm.run_convert import convert
from trtx.stages.base import StepContext
from trtx.stages.params_trtllm import TrtllmConvertParams
from trtx.stages.trtllm_step import make_step


def run(params: TrtllmConvertParams, context: StepContext) -> dict[str, Any]:
    """Write config.json, rankN.safetensors and tokenizer/. Input: checkpoint."""
    return convert(params.spec, make_step(context))
