"""Parameters of the stages of TensorRT-LLM, beside those of the embedded backend in trtx.stages.params.

`backend` tells the two apart in job.json and in keys. The stages' names are the same, so that runners, logs and events
need not know which backend a step is of. Imports no torch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from trtx.backends.tensorrt_llm.spec import CheckpointSpec, TrtllmSpec
from trtx.stages.params import Params, Workload

BACKEND = "tensorrt-llm"


class TrtllmParams(Params):
    """Base of all parameters of this backend."""

    backend: Literal["tensorrt-llm"] = "tensorrt-llm"


class TrtllmCalibrateParams(TrtllmParams):
    """Engine flow with converter `release`: quantize.py. Inputs: model, and data for formats that observe activations.

    Output: a TensorRT-LLM checkpoint (config.json, rankN.safetensors) and tokenizer/. `samples` rows of `max_length`
    tokens, `batch_size` at a time.
    """

    stage: ClassVar[str] = "calibrate"
    code_version: ClassVar[int] = 1

    spec: CheckpointSpec
    samples: int
    max_length: int
    batch_size: int
    seed: int


class TrtllmConvertParams(TrtllmParams):
    """Engine flow: a Hugging Face checkpoint into TensorRT-LLM's. Input: checkpoint.

    `spec.converter` says who writes it. Output: config.json, rankN.safetensors and tokenizer/.
    """

    stage: ClassVar[str] = "convert"
    code_version: ClassVar[int] = 1

    spec: CheckpointSpec


class TrtllmBuildParams(TrtllmParams):
    """Engine flow: input checkpoint (TensorRT-LLM's, with tokenizer/). Output: the engine folder.

    That is config.json, rankN.engine, tokenizer/, and trtllm.json, which says what it was made by and for.
    PyTorch flow: no input. Output: llm_options.yaml and trtllm.json.
    """

    stage: ClassVar[str] = "build"
    code_version: ClassVar[int] = 1

    spec: TrtllmSpec


class TrtllmBenchmarkParams(TrtllmParams):
    """Measure with trtllm-bench. Inputs: engine, and in the PyTorch flow checkpoint (the Hugging Face folder).

    Output: benchmark.json and benchmark.csv as the embedded backend's, and the reports of trtllm-bench in raw/.
    """

    stage: ClassVar[str] = "benchmark"
    code_version: ClassVar[int] = 1

    spec: TrtllmSpec
    workloads: dict[str, Workload]
    repeats: int
    warmup_requests: int
    seed: int


class TrtllmPackageParams(TrtllmParams):
    """Assemble a deployment folder on the release's container.

    Inputs: engine, in the PyTorch flow checkpoint (the Hugging Face folder), benchmark if there is one.
    """

    stage: ClassVar[str] = "package"
    code_version: ClassVar[int] = 1

    spec: TrtllmSpec
    name: str
    cell: str
    image: str | None
    emit: tuple[Literal["compose", "triton"], ...]
    port: int
    gpus_per_node: int


TRTLLM_PARAMS: dict[str, type[Params]] = {
    cls.stage: cls
    for cls in (
        TrtllmCalibrateParams,
        TrtllmConvertParams,
        TrtllmBuildParams,
        TrtllmBenchmarkParams,
        TrtllmPackageParams,
    )
}
