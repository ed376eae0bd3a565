"""The package step of TensorRT-LLM: a deployment folder on the release's container."""

from __future__ import annotations

from typing import Any

from trtx.backends.tensorrt_llm.run_package import Deployment, package
from trtx.stages.base import StepContext
from trtx.stages.params_trtllm import TrtllmPackageParams
from trtx.stages.trtllm_step import make_step

# Inputs whose keys are named in the deployment: those that enter this step's own key, so that its bytes follow.
KEYED_INPUTS = ("engine", "checkpoint", "benchmark")


def run(params: TrtllmPackageParams, context: StepContext) -> dict[str, Any]:
    """Write the deployment folder. Inputs: engine, in the PyTorch flow checkpoint, benchmark if there is one."""
    deployment = Deployment(
        name=params.name,
        cell=params.cell,
        image=params.image,
        port=params.port,
        emit=params.emit,
        gpus_per_node=params.gpus_per_node,
        keys={name: context.keys[name] for name in KEYED_INPUTS if name in context.keys},
    )
    return package(params.spec, make_step(context), deployment)
