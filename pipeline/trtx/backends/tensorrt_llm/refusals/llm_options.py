"""Keys of the LLM options file that a recipe states: the release's classes refuse what they do not know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from trtx.backends.tensorrt_llm.llm_options import SCHEMAS
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, refuse_by
from trtx.backends.tensorrt_llm.schema_check import Finding, check_schema
from trtx.recipe.problems import Path
from trtx.recipe.tree import dotted

# Keys of the options file → the recipe's own setting; None: only trtx can know it.
SETTING_OF: Mapping[str, str | None] = MappingProxyType(
    {
        "max_batch_size": "engine.limits.max_batch_size",
        "max_num_tokens": "engine.limits.max_num_tokens",
        "max_seq_len": "engine.limits.max_seq_len",
        "max_input_len": "engine.limits.max_input_len",
        "max_beam_width": "engine.limits.max_beam_width",
        "dtype": "engine.dtype",
        "enable_chunked_prefill": "engine.scheduler.chunked_prefill",
        "speculative_config": "engine.speculative",
        "enable_lora": "engine.lora",
        "lora_config": "engine.lora",
        "tensor_parallel_size": "targets.NAME.parallelism.tensor",
        "pipeline_parallel_size": "targets.NAME.parallelism.pipeline",
        "context_parallel_size": "targets.NAME.parallelism.context",
        "moe_expert_parallel_size": "targets.NAME.parallelism.expert",
        "moe_tensor_parallel_size": "targets.NAME.parallelism.expert",
        "kv_cache_config.enable_block_reuse": "engine.kv_cache.reuse",
        "kv_cache_config.free_gpu_memory_fraction": "engine.kv_cache.memory_fraction",
        "kv_cache_config.host_cache_size": "engine.kv_cache.host_size",
        "kv_cache_config.tokens_per_block": "engine.kv_cache.tokens_per_block",
        "kv_cache_config.dtype": "quantization.NAME.kv_cache",
        "scheduler_config.capacity_scheduler_policy": "engine.scheduler.policy",
        "model": None,
        "tokenizer": None,
        "backend": None,
        "trust_remote_code": None,
    }
)


def check_llm_options(subject: Subject) -> Iterator[Refusal]:
    if subject.flow != "pytorch" or not subject.engine.llm_options:
        return
    options = dict(subject.engine.llm_options)
    if "build_config" in options:
        path: Path = ("engine", "llm_options", "build_config")
        what = f"the PyTorch flow of {subject.title} ignores build_config"
        yield refuse_by(
            subject, "yaml-build-config", path, what, "remove it, or write engine.flow: engine", at_key=True
        )
        del options["build_config"]
    for name, setting in SETTING_OF.items():
        if _has(options, name):
            yield _stated_twice(name, setting)
    name = SCHEMAS["pytorch"]
    if name not in subject.release.schemas:
        return
    doubts: list[Finding] = []
    for finding in check_schema(subject.release, name, options):
        if finding.path in SETTING_OF or not finding.path.partition(".")[0]:
            continue
        if finding.doubt:
            doubts.append(finding)
            continue
        yield _wrong(subject, finding, options)
    yield from (_doubt(subject, finding) for finding in doubts)


def _stated_twice(name: str, setting: str | None) -> Refusal:
    path = _path_of(name)
    what = f"{dotted(path)} sets what {setting} sets" if setting else f"{dotted(path)} is written by trtx itself"
    why = "which of the file and the command line wins changed after 1.3.0rc3" if setting else "security and files"
    return Refusal(
        "stated-twice",
        path,
        what,
        why,
        f"use {setting}" if setting else "remove it",
        "tensorrt_llm/llmapi/llm_args.py:3447",
        at_key=True,
    )


def _wrong(subject: Subject, finding: Finding, options: Mapping[str, object]) -> Refusal:
    path = _path_of(finding.path)
    message, _, fix = finding.message.partition("; ")
    is_key = "has no such key" in message
    return Refusal(
        "yaml-unknown-key" if is_key else "wrong-value",
        path,
        f"the options file of {subject.title} has no key {finding.path}"
        if is_key
        else f"{finding.path} of {subject.title}'s options file {message}",
        "its classes refuse what they do not know" if is_key else "its classes check every value",
        fix or "write a value of that kind",
        "tensorrt_llm/llmapi/llm_args.py:98",
        at_key=is_key,
    )


def _doubt(subject: Subject, finding: Finding) -> Refusal:
    return Refusal(
        "flag-not-established",
        _path_of(finding.path),
        f"whether the options file of {subject.title} has {finding.path} is not established",
        "its classes are known exactly for 1.3.0rc3 only",
        "read its image: trtx probe IMAGE --write FILE, and name the file in engine.probe",
        f"the table of {subject.release.version}",
        "warning",
        at_key=True,
    )


def _has(options: Mapping[str, object], name: str) -> bool:
    value: object = options
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _path_of(dotted_name: str) -> Path:
    """`a.b[0].c` as a place of the recipe."""
    parts: list[str | int] = ["engine", "llm_options"]
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", dotted_name):
        parts.append(int(index) if index else name)
    return tuple(parts)


CHECKS = (check_llm_options,)
