"""Presets of a recipe: documented sets of flags of trtllm-build and keys of the LLM options file.

Sources are the documents of TensorRT-LLM: docs/source/performance/performance-tuning-guide/useful-build-time-flags.md
and deciding-model-sharding-strategy.md (0.16 to 1.0, later under docs/source/legacy), docs/source/advanced/
gpt-attention.md for chunked context, and docs/source/features/ of 1.3.0rc3 for the PyTorch flow. A flag that a release
does not surely have is left out of its set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from trtx.backends.tensorrt_llm.releases import Flow, Release
from trtx.backends.tensorrt_llm.spec import Shape

Preset = Literal["throughput", "latency", "long-context"]


@dataclass(frozen=True)
class Case:
    """What decides whether a flag helps: formats, the compute capability as 90, ranks and the architecture."""

    algorithm: str
    kv_cache: str
    sm: int
    tensor: int
    shape: Shape | None


@dataclass(frozen=True)
class Flag:
    """One flag or key of a preset, where `applies` says that it helps; `why` is what the documents say about it."""

    name: str
    value: Any
    why: str
    applies: Callable[[Case], bool] = lambda case: True


def _is_fp8(case: Case) -> bool:
    return case.algorithm == "fp8" and case.sm in (89, 90)


def _is_plain(case: Case) -> bool:
    return case.algorithm == "none"


def _pages_context(case: Case) -> bool:
    """Where builder.py does not switch use_paged_context_fmha off again."""
    return case.kv_cache != "int8"


def _fuses_reduction(case: Case) -> bool:
    """Where builder.py:991-1006 does not switch reduce_fusion off again."""
    names = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")
    return case.tensor > 1 and case.shape is not None and case.shape.architecture in names


# Plugins and switches of trtllm-build, all by enable and disable or a word.
ENGINE: Mapping[Preset, tuple[Flag, ...]] = MappingProxyType(
    {
        "throughput": (
            Flag("multiple_profiles", "enable", "kernels are chosen for small and for large batches"),
            Flag("use_paged_context_fmha", "enable", "blocks are reused, prompts are split over steps", _pages_context),
            Flag("gemm_plugin", "auto", "faster in 16 bits; FP8 is faster without it", _is_plain),
            Flag("reduce_fusion", "enable", "ResidualAdd and LayerNorm join AllReduce", _fuses_reduction),
        ),
        "latency": (
            Flag("low_latency_gemm_plugin", "fp8", "small batches of FP8", lambda c: _is_fp8(c) and c.sm == 90),
            Flag("use_fused_mlp", "enable", "one GEMM for gate and up", lambda c: _is_fp8(c) or _is_plain(c)),
            Flag("reduce_fusion", "enable", "ResidualAdd and LayerNorm join AllReduce", _fuses_reduction),
            Flag("gemm_plugin", "auto", "faster in 16 bits; FP8 is faster without it", _is_plain),
        ),
        "long-context": (
            Flag("use_paged_context_fmha", "enable", "long prompts are split over steps", _pages_context),
            Flag(
                "multiple_profiles", "enable", "kernels are chosen for one long prompt and for many tokens of answers"
            ),
        ),
    }
)
# Keys of the LLM options file.
PYTORCH: Mapping[Preset, tuple[Flag, ...]] = MappingProxyType(
    {
        "throughput": (
            Flag("cuda_graph_config", {"enable_padding": True}, "odd batches run in the next larger graph"),
            Flag("stream_interval", 10, "answers are sent every ten tokens"),
        ),
        "latency": (
            Flag("cuda_graph_config", {"enable_padding": True}, "odd batches run in the next larger graph"),
            Flag("stream_interval", 1, "answers are sent token by token"),
            Flag("disable_overlap_scheduler", False, "the next step is planned while one runs"),
        ),
        "long-context": (
            Flag("disable_overlap_scheduler", False, "the next step is planned while one runs"),
            Flag("stream_interval", 1, "answers are sent token by token"),
        ),
    }
)


def expand_preset(preset: Preset | None, release: Release, flow: Flow, case: Case) -> dict[str, Any]:
    """The flags of a preset in a release by name: those that it surely has and that help in this case."""
    if preset is None:
        return {}
    if flow == "engine":
        tool = release.tools.get("trtllm-build")
        options = {option.name: option for option in tool.options} if tool else {}
        flags = [flag for flag in ENGINE[preset] if _takes(options.get(flag.name), flag.value)]
    else:
        known = release.schema_fields("TorchLlmArgs") if "TorchLlmArgs" in release.schemas else {}
        flags = [flag for flag in PYTORCH[preset] if flag.name in known and known[flag.name].confidence != "unknown"]
    return {flag.name: flag.value for flag in flags if flag.applies(case)}


def _takes(option: Any, value: str) -> bool:
    return option is not None and option.is_certain and option.takes(value) not in (None, "unknown")


def describe_presets() -> list[dict[str, str]]:
    """Every preset with the flags of both flows, for the reference."""
    return [{"name": name, "engine": _describe(ENGINE[name]), "pytorch": _describe(PYTORCH[name])} for name in ENGINE]


def _describe(flags: tuple[Flag, ...]) -> str:
    return "; ".join(f"`{flag.name}: {_word(flag.value)}` ({flag.why})" for flag in flags)


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_word(inner)}" for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
