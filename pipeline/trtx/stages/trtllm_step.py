"""A running step as the backend of TensorRT-LLM sees it."""

from __future__ import annotations

from trtx.backends.tensorrt_llm.step import Step
from trtx.stages.base import StepContext


def make_step(context: StepContext) -> Step:
    return Step(context.inputs, context.output, context.work, context.say, context.progress)
