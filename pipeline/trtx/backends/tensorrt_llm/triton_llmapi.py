"""The llmapi model: TensorRT-LLM's LLM API in a Python model, with its arguments in 1/model.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.triton_interface import READ
from trtx.backends.tensorrt_llm.triton_serving import TritonServing
from trtx.backends.triton.config import TritonModel, read_template, tensors_from_table
from trtx.errors import UsageProblem

MODEL = "llmapi/tensorrt_llm"
MODEL_YAML = "model.yaml"
# Outputs that come of a request's figures, which the LLM API gives only where `return_perf_metrics` asks for them, in
# shapes that moved between releases.
FIGURES = frozenset(
    [
        "kv_cache_reused_block",
        "kv_cache_missed_block",
        "kv_cache_alloc_new_blocks",
        "kv_cache_alloc_total_blocks",
        "kv_cache_hit_rate",
        "arrival_time_ns",
        "first_scheduled_time_ns",
        "first_token_time_ns",
        "last_token_time_ns",
        "acceptance_rate",
        "total_accepted_draft_tokens",
        "total_draft_tokens",
    ]
)
# Inputs of the release's own model for what this one does not do; a request that sets one is refused by the server.
NOT_TAKEN = frozenset({"sampling_param_return_perf_metrics", "stop"})
# Keys of model.yaml that are not the LLM's.
RESERVED = frozenset({"model", "triton_config"})


def llmapi_model(spec: TrtllmSpec, release: Release, serving: TritonServing, options: Mapping[str, Any]) -> TritonModel:
    """The one model of the PyTorch flow.

    Requests have no batch dimension: concurrent ones meet in the LLM's own batcher. Raises UsageProblem for an option
    that the repository decides itself.
    """
    row = release.triton_models.get(MODEL) or Release.load(READ).triton_models[MODEL]
    inputs = tuple(tensor for tensor in tensors_from_table(row["input"], "TYPE_FP32") if tensor.name not in NOT_TAKEN)
    outputs = tuple(tensor for tensor in tensors_from_table(row["output"], "TYPE_FP32") if tensor.name not in FIGURES)
    return TritonModel(
        name="tensorrt_llm",
        backend="python",
        inputs=tuple(replace(tensor, optional=tensor.name != "text_input") for tensor in inputs),
        outputs=outputs,
        max_batch_size=0,
        decoupled=serving.streaming,
        parameters={"tokenizer_dir": serving.tokenizer, "release": release.version},
        files={
            "model.py": read_template("tensorrt_llm/llmapi.py"),
            MODEL_YAML: make_model_yaml(spec, serving, options),
        },
    )


def make_model_yaml(spec: TrtllmSpec, serving: TritonServing, options: Mapping[str, Any]) -> str:
    """The text of model.yaml: LLM arguments by key, one line each, and what Triton is told.

    Each value is JSON, which is YAML, and which Python reads in a container without a YAML library.
    """
    for key in sorted(RESERVED & options.keys()):
        raise UsageProblem(
            f"{key} cannot be an option of a Triton repository", why="trtx writes it itself", fix="leave it out"
        )
    arguments = {
        "model": serving.engine_dir,
        "tokenizer": serving.tokenizer,
        "backend": "pytorch",
        "tensor_parallel_size": spec.ranks.tensor,
        "pipeline_parallel_size": spec.ranks.pipeline,
        "max_batch_size": spec.sizes.max_batch_size,
        "max_num_tokens": spec.sizes.max_num_tokens,
        "max_seq_len": spec.sizes.max_seq_len,
        **options,
        "triton_config": {"max_batch_size": 0, "decoupled": serving.streaming},
    }
    lines = [f"{key}: {json.dumps(value, sort_keys=True)}" for key, value in arguments.items()]
    return "\n".join(["# Arguments of TensorRT-LLM's LLM, and what Triton is told. Written by trtx.", *lines, ""])
