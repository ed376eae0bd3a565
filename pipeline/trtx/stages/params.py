"""Parameters of every stage: all that a step may depend on besides its inputs. Imports no torch.

Each model is written to job.json by the plan and read back by the worker; its canonical JSON is part of the key.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat
from trtx.runtime.card import Limits, Rank


class Params(BaseModel):
    """Base of all parameters.

    `code_version` is part of every key of the stage: raise it with any change that can change the output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: ClassVar[str]
    code_version: ClassVar[int]


class DownloadParams(Params):
    """Fetch a model's files. Input: none. Output: a Hugging Face model folder."""

    stage: ClassVar[str] = "download"
    code_version: ClassVar[int] = 2

    url: str
    identity: str
    allow_pickle: bool = False


class DatasetParams(Params):
    """Fetch texts and choose rows. Input: none.

    Output: calibration.jsonl and heldout.jsonl, rows {"text": …}; rows.json, which rows they are. `samples` rows for
    calibration and `heldout` other rows for perplexity are drawn by `seed`.
    """

    stage: ClassVar[str] = "dataset"
    code_version: ClassVar[int] = 2

    url: str
    identity: str
    split: str
    column: str
    samples: int
    heldout: int
    seed: int


class CalibrateParams(Params):
    """Quantize with ModelOpt. Inputs: model, data. Output: a unified Hugging Face checkpoint.

    A model that is quantized already stays as it is, and must be in the format of `quantization`.
    Beside the checkpoint: trtx_calibration.json (perplexity before and after) and
    trtx_heldout.safetensors (the windows it was measured on: `tokens` int64 [num_windows, window+1]).
    """

    stage: ClassVar[str] = "calibrate"
    code_version: ClassVar[int] = 1

    quantization: QuantFormat
    max_length: int
    batch_size: int
    seed: int


class ConvertParams(Params):
    """Rewrite a checkpoint in the engine's layout. Input: checkpoint.

    Output: config.json, rankN.safetensors, tokenizer/.
    """

    stage: ClassVar[str] = "convert"
    code_version: ClassVar[int] = 2

    dtype: DType
    tensor: int
    pipeline: int


class BuildParams(Params):
    """Compile the programs. Keyed inputs: none. Witnesses: weights, checkpoint, model (for the check only).

    Output: engine.json, compile.json, programs/, check.json.
    """

    stage: ClassVar[str] = "build"
    code_version: ClassVar[int] = 7

    model: ModelConfig
    quantization: QuantFormat
    dtype: DType
    limits: Limits
    tokens_per_block: int
    rank: Rank
    arch: str


class Workload(BaseModel):
    """One load: every request has these many prompt and output tokens; `requests` per concurrency level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_tokens: int
    output_tokens: int
    concurrency: tuple[int, ...]
    requests: int


class Scheduling(BaseModel):
    """How an engine is loaded to put requests into steps: see SchedulerSettings of trtx.runtime."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["guaranteed-no-evict", "max-utilization"]
    chunked_prefill: bool
    prefix_reuse: bool


class BenchmarkParams(Params):
    """Measure an engine. Inputs: engine, weights. Witnesses: checkpoint, model.

    Output: benchmark.json, benchmark.csv, check.json.
    """

    stage: ClassVar[str] = "benchmark"
    code_version: ClassVar[int] = 4

    workloads: dict[str, Workload]
    repeats: int
    warmup_requests: int
    kv_cache_bytes: int | None
    memory_fraction: float
    scheduler: Scheduling
    seed: int


class PackageParams(Params):
    """Assemble a deployment folder. Inputs: engine, weights, benchmark if there is one. Witnesses: checkpoint, model.

    Output: the folder; see templates/package. `triton_base` is None where no repository of Triton is asked for.
    """

    stage: ClassVar[str] = "package"
    code_version: ClassVar[int] = 3

    name: str
    cell: str
    image: str | None
    base: str
    emit: tuple[Literal["compose", "triton"], ...]
    triton_base: str | None
    port: int
    kv_cache_bytes: int | None
    memory_fraction: float
    scheduler: Scheduling


PARAMS: dict[str, type[Params]] = {
    cls.stage: cls
    for cls in (
        DownloadParams,
        DatasetParams,
        CalibrateParams,
        ConvertParams,
        BuildParams,
        BenchmarkParams,
        PackageParams,
    )
}
