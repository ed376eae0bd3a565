"""The command lines of trtllm-bench: throughput and latency of an engine, or of the PyTorch flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from trtx.backends.tensorrt_llm.commands import Command, CommandLine
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.errors import UsageProblem

TOOL = "trtllm-bench"
OPTIONS_FLAG = "--extra_llm_api_options"
Mode = Literal["throughput", "latency"]
POLICIES = {"guaranteed-no-evict": "guaranteed_no_evict", "max-utilization": "max_utilization"}


@dataclass(frozen=True)
class BenchFiles:
    """Where a run reads and writes. `model` is the Hugging Face folder, or of an engine the folder of its tokenizer."""

    model: Path
    dataset: Path
    workspace: Path
    report: Path
    engine: Path | None = None
    options: Path | None = None


@dataclass(frozen=True)
class BenchLoad:
    """One run: `requests` of the dataset, `concurrency` at a time, after `warmup` of them."""

    requests: int
    concurrency: int
    warmup: int


def make_bench_command(
    spec: TrtllmSpec, release: Release, files: BenchFiles, load: BenchLoad, mode: Mode = "throughput"
) -> Command:
    """trtllm-bench for one workload at one concurrency.

    A release without --concurrency gets it as the batch size, which bounds the requests in flight as well. Raises
    UsageProblem when the release cannot measure this flow.
    """
    group = CommandLine(release, release.tool(TOOL))
    # Before 0.16 there is no --model_path, and --model names what the tokenizer is loaded from.
    group.give("model", str(files.model))
    if group.lists("model_path"):
        group.give("model_path", str(files.model))
    group.give("workspace", str(files.workspace))
    group.pin("log_level", "info")
    line = CommandLine(release, release.tool(TOOL, mode))
    _give_backend(line, spec, files)
    line.give("dataset", str(files.dataset))
    line.give("num_requests", load.requests)
    if line.lists("warmup"):
        line.give("warmup", load.warmup, droppable=True)
    _give_load(line, spec, load, mode)
    line.give("kv_cache_free_gpu_mem_fraction", spec.pool.memory_fraction)
    if mode == "throughput":
        line.pin("beam_width", spec.sizes.max_beam_width)
        if line.lists("streaming"):
            line.give("streaming", True)
    if line.lists("report_json"):
        line.give("report_json", str(files.report), droppable=True)
    return line.command(group)


# What is said on the command line → where it would stand in the options file, which must not have it, too.
SAID: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "--tp": ("tensor_parallel_size",),
        "--pp": ("pipeline_parallel_size",),
        "--ep": ("moe_expert_parallel_size",),
        "--max_batch_size": ("max_batch_size",),
        "--max_num_tokens": ("max_num_tokens",),
        "--max_seq_len": ("max_seq_len",),
        "--beam_width": ("max_beam_width",),
        "--kv_cache_free_gpu_mem_fraction": ("kv_cache_config", "free_gpu_memory_fraction"),
        "--scheduler_policy": ("scheduler_config", "capacity_scheduler_policy"),
        "--enable_chunked_context": ("enable_chunked_prefill",),
        "--disable_chunked_context": ("enable_chunked_prefill",),
    }
)


def said_in(command: Command) -> frozenset[tuple[str, ...]]:
    """Keys of the options file that a command says itself."""
    return frozenset(SAID[part.flag] for part in command.parts if part.flag in SAID)


def has_report(command: Command) -> bool:
    """Whether a command writes its figures to a file; else they are in its log."""
    return any(part.flag == "--report_json" for part in command.parts)


def has_concurrency(command: Command) -> bool:
    """Whether the tool itself holds the number of requests in flight."""
    return any(part.flag == "--concurrency" for part in command.parts)


def _give_backend(line: CommandLine, spec: TrtllmSpec, files: BenchFiles) -> None:
    if spec.flow == "engine":
        line.give("engine_dir", None if files.engine is None else str(files.engine))
        if line.release.pytorch_backend:  # Their default is the PyTorch backend.
            line.give("backend", "tensorrt")
            if files.options is not None and line.lists(OPTIONS_FLAG):
                line.give(OPTIONS_FLAG, str(files.options), droppable=True)
        return
    if not line.lists("backend"):
        raise UsageProblem(
            f"trtllm-bench of TensorRT-LLM {line.release.version} has no PyTorch backend",
            why="it measures engines only",
            fix="choose a later release, or write engine.flow: engine",
        )
    line.give("backend", "pytorch")
    line.give(OPTIONS_FLAG, str(files.options))


def _give_load(line: CommandLine, spec: TrtllmSpec, load: BenchLoad, mode: Mode) -> None:
    sizes = spec.sizes
    if line.lists("concurrency"):
        line.give("concurrency", load.concurrency, droppable=True)
    if mode == "latency":
        return
    in_flight = sizes.max_batch_size if line.lists("concurrency") else min(load.concurrency, sizes.max_batch_size)
    line.give("max_batch_size", in_flight)
    line.give("max_num_tokens", sizes.max_num_tokens)
    if spec.flow == "pytorch":
        line.pin("max_seq_len", sizes.max_seq_len)
        line.give("tp", spec.ranks.tensor)
        line.give("pp", spec.ranks.pipeline)
        if spec.shape.num_experts:
            line.give("ep", spec.ranks.expert)
    if line.lists("request_rate"):
        line.pin("request_rate", -1)
    line.pin("scheduler_policy", POLICIES[spec.batching.policy])
    line.pin("enable_chunked_context", spec.batching.chunked_context)
