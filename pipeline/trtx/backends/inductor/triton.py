"""Triton's model repository for an engine of trtx: one Python model around the runtime."""

from __future__ import annotations

import re
from pathlib import Path

import trtx
from trtx.backends.triton.config import Tensor, TritonModel, check_complete, read_template, write_model
from trtx.runtime.card import EngineCard
from trtx.runtime.scheduler import SchedulerSettings

STRING, INT32, UINT64, FP32, BOOL = "TYPE_STRING", "TYPE_INT32", "TYPE_UINT64", "TYPE_FP32", "TYPE_BOOL"

# What trtx.serve.triton_tensors reads and makes, under the names of TensorRT-LLM's ensemble.
INPUTS = (
    Tensor("text_input", STRING, optional=True),
    Tensor("input_ids", INT32, (-1,), optional=True),
    *(Tensor(name, STRING, (-1,), optional=True) for name in ("stop_words", "bad_words")),
    *(
        Tensor(name, INT32, optional=True)
        for name in ("max_tokens", "min_tokens", "top_k", "end_id", "beam_width", "num_return_sequences")
    ),
    *(
        Tensor(name, FP32, optional=True)
        for name in (
            *("temperature", "top_p", "min_p"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        )
    ),
    *(Tensor(name, UINT64, optional=True) for name in ("seed", "random_seed")),
    *(
        Tensor(name, BOOL, optional=True)
        for name in ("stream", "ignore_eos", "return_log_probs", "exclude_input_in_output")
    ),
)
OUTPUTS = (
    Tensor("text_output", STRING, (-1,)),
    Tensor("output_ids", INT32, (-1, -1)),
    Tensor("sequence_length", INT32, (-1,)),
    Tensor("finish_reason", STRING, (-1,)),
    Tensor("cum_log_probs", FP32, (-1,)),
    Tensor("output_log_probs", FP32, (-1, -1)),
    Tensor("num_input_tokens", INT32),
    Tensor("num_output_tokens", INT32),
)


def make_model(
    name: str,
    card: EngineCard,
    *,
    engine_dir: str,
    kv_cache_bytes: int | None,
    memory_fraction: float,
    scheduler: SchedulerSettings,
    decoupled: bool = True,
) -> TritonModel:
    """The model of an engine. `engine_dir` is relative to the model's folder; `decoupled` lets answers stream."""
    return TritonModel(
        name=model_name(name),
        backend="python",
        inputs=INPUTS,
        outputs=OUTPUTS,
        max_batch_size=card.limits.max_batch_size,
        decoupled=decoupled,
        parameters={
            "engine_dir": engine_dir,
            "trtx_version": trtx.__version__,
            "kv_cache_bytes": "" if kv_cache_bytes is None else str(kv_cache_bytes),
            "memory_fraction": f"{memory_fraction:g}",
            "policy": scheduler.policy,
            "chunked_prefill": "true" if scheduler.chunked_prefill else "false",
            "prefix_reuse": "true" if scheduler.prefix_reuse else "false",
        },
        files={"model.py": read_template("inductor/model.py")},
    )


def write_repository(repository: Path, model: TritonModel) -> Path:
    """Write the repository with this one model; returns the model's folder."""
    folder = write_model(repository, model)
    check_complete(repository)
    return folder


def model_name(name: str) -> str:
    """The name of a recipe as the name of a model: what the server's URLs cannot hold becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "model"
