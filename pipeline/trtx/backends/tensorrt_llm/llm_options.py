"""The options file of the LLM API: what a recipe says, as YAML that trtllm-serve and trtllm-bench of a release read.

In the PyTorch flow it is the artefact beside the checkpoint, with fields of TorchLlmArgs. With an engine it says what
the engine does not hold, how requests are put into steps and the KV cache, with fields of TrtLlmArgs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.schema_check import DISCRIMINATOR, Finding, check_schema
from trtx.backends.tensorrt_llm.spec import Speculation, TrtllmSpec
from trtx.errors import UsageProblem
from trtx.render import quote_yaml

FILE_NAME = "llm_options.yaml"
SCHEMAS = MappingProxyType({"pytorch": "TorchLlmArgs", "engine": "TrtLlmArgs"})
POLICIES = MappingProxyType({"guaranteed-no-evict": "GUARANTEED_NO_EVICT", "max-utilization": "MAX_UTILIZATION"})
# Modes of a recipe → decoding_type; others belong to the engine flow, or to no release that is known.
DECODING: Mapping[str, str] = MappingProxyType(
    {
        "draft-target": "Draft_Target",
        "eagle": "Eagle",
        "eagle3": "Eagle",
        "mtp": "MTP",
        "ngram": "NGram",
    }
)
# What a recipe cannot set here: it has settings of its own, or the command line says it.
OWN = frozenset(
    {
        "model",
        "tokenizer",
        "backend",
        "build_config",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "context_parallel_size",
        "moe_tensor_parallel_size",
        "moe_expert_parallel_size",
        "max_batch_size",
        "max_num_tokens",
        "max_seq_len",
        "max_input_len",
        "max_beam_width",
        "trust_remote_code",
    }
)


@dataclass(frozen=True)
class LlmOptions:
    """The content of an options file, and what about it is not established for the release."""

    values: dict[str, Any]
    doubts: tuple[str, ...]

    def to_yaml(self) -> str:
        """One line a key, sorted; JSON values, which are YAML 1.2."""
        return "".join(f"{key}: {quote_yaml(value)}\n" for key, value in sorted(self.values.items()))


def make_options(spec: TrtllmSpec, release: Release, without: Collection[tuple[str, ...]] = ()) -> LlmOptions:
    """The options of a spec. `without` are keys that a command line says already, as paths.

    Raises UsageProblem with every key that the release would refuse.
    """
    values = _pytorch_values(spec) if spec.flow == "pytorch" else _engine_values(spec)
    if spec.flow == "pytorch":
        values = _merge(values, _own_options(spec))
    for path in without:
        _drop(values, path)
    findings = check_options(spec, release, values)
    if wrong := [finding for finding in findings if not finding.doubt]:
        raise UsageProblem(
            f"TensorRT-LLM {release.version} would refuse its options file: {wrong[0]}",
            why="\n       ".join(map(str, wrong)) if len(wrong) > 1 else "an unknown or wrong key ends the server",
            fix="correct engine.llm_options, or choose another release",
        )
    return LlmOptions(values, _doubts(spec, release, findings))


def check_options(spec: TrtllmSpec, release: Release, values: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What the release's class says of these options; nothing where no class of the release is known."""
    name = SCHEMAS[spec.flow]
    if name not in release.schemas:
        return ()
    return check_schema(release, name, {"model": "", **values})  # The command line names the model.


def _doubts(spec: TrtllmSpec, release: Release, findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return (*_unknown_keys(spec, release, findings), *_draft_doubts(spec))


def _draft_doubts(spec: TrtllmSpec) -> tuple[str, ...]:
    draft = spec.speculation.draft if spec.speculation and spec.flow == "pytorch" else None
    if draft is None:
        return ()
    return (f"the draft {draft} is no part of what is packaged: the server has to find {place_of(draft)} itself",)


def _unknown_keys(spec: TrtllmSpec, release: Release, findings: tuple[Finding, ...]) -> tuple[str, ...]:
    if SCHEMAS[spec.flow] not in release.schemas:
        return (f"keys of the options file are not established for TensorRT-LLM {release.version}",)
    keys = sorted({finding.path for finding in findings if finding.doubt})
    if not keys:
        return ()
    return (f"whether TensorRT-LLM {release.version} has these keys is not established: {', '.join(keys)}",)


def _pytorch_values(spec: TrtllmSpec) -> dict[str, Any]:
    sizes, ranks = spec.sizes, spec.ranks
    values: dict[str, Any] = {
        "dtype": spec.dtype,
        "tensor_parallel_size": ranks.tensor,
        "pipeline_parallel_size": ranks.pipeline,
        "max_batch_size": sizes.max_batch_size,
        "max_num_tokens": sizes.max_num_tokens,
        "max_seq_len": sizes.max_seq_len,
        "max_beam_width": sizes.max_beam_width,
        "trust_remote_code": False,
        **_engine_values(spec),
    }
    values["kv_cache_config"] |= {"tokens_per_block": spec.pool.tokens_per_block, "dtype": spec.quantization.kv_cache}
    if sizes.max_input_len is not None:
        values["max_input_len"] = sizes.max_input_len
    if ranks.context > 1:
        values["context_parallel_size"] = ranks.context
    if spec.shape.num_experts:
        values["moe_tensor_parallel_size"] = ranks.expert_tensor
        values["moe_expert_parallel_size"] = ranks.expert
    if spec.speculation is not None:
        values["speculative_config"] = _decoding(spec.speculation)
    if spec.lora is not None:
        values["enable_lora"] = True
        values["lora_config"] = {
            "max_lora_rank": spec.lora.max_rank,
            "lora_target_modules": list(spec.lora.target_modules),
            "max_loras": spec.lora.max_adapters,
        }
    return values


def _engine_values(spec: TrtllmSpec) -> dict[str, Any]:
    """What both flows say: the KV cache and how requests are put into steps."""
    cache: dict[str, Any] = {
        "enable_block_reuse": spec.pool.reuse,
        "free_gpu_memory_fraction": spec.pool.memory_fraction,
    }
    if spec.pool.host_bytes:
        cache["host_cache_size"] = spec.pool.host_bytes
    return {
        "kv_cache_config": cache,
        "scheduler_config": {"capacity_scheduler_policy": POLICIES[spec.batching.policy]},
        "enable_chunked_prefill": spec.batching.chunked_context,
    }


def _decoding(speculation: Speculation) -> dict[str, Any]:
    kind = DECODING.get(speculation.mode)
    if kind is None:
        raise UsageProblem(
            f"speculative decoding by {speculation.mode} is not of the PyTorch flow",
            why=f"it has {', '.join(DECODING)}",
            fix="choose one of these, or write engine.flow: engine",
        )
    values: dict[str, Any] = {DISCRIMINATOR: kind}
    if kind == "MTP":
        return {**values, "num_nextn_predict_layers": speculation.max_draft_len}
    values["max_draft_len"] = speculation.max_draft_len
    if speculation.draft is not None:
        values["speculative_model_dir"] = place_of(speculation.draft)
    if kind == "Eagle":
        values["eagle3_one_model"] = speculation.mode == "eagle3"
    return values


def place_of(source: str) -> str:
    """A model's source as the LLM API names it: a folder, or a name on the Hugging Face Hub."""
    return source.removeprefix("file://").removeprefix("hf://")


def _own_options(spec: TrtllmSpec) -> dict[str, Any]:
    if taken := sorted(OWN & spec.options.keys()):
        raise UsageProblem(
            f"engine.llm_options cannot set {taken[0]}",
            why="trtx writes it itself, from the recipe's limits and parallelism, or on the command line",
            fix="use the recipe's own setting",
        )
    return dict(spec.options)


def _merge(values: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key, everything else replaced."""
    merged = dict(values)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _drop(values: dict[str, Any], path: tuple[str, ...]) -> None:
    """Take a key out, and a block that is empty then."""
    *outer, last = path
    inner = values
    for name in outer:
        if not isinstance(inner.get(name), dict):
            return
        inner = inner[name]
    inner.pop(last, None)
    if outer and not inner:
        values.pop(outer[0], None)
