"""Which number formats run on which architecture: natively, as a simulation, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from trtx.hardware.gpus import GPUS, Gpu

__all__ = ["COMPILED", "GPUS", "SUPPORT", "Gpu", "Level", "compile_problem", "support_of", "support_problem"]

Level = Literal["native", "simulated", "none"]

ANYWHERE = ("none", "int8_sq", "int8_wo", "int8_gptq", "int4_wo", "int4_awq", "int4_gptq")
FP8 = ("fp8", "fp8_dynamic", "fp8_block_wo", "w4a8_awq")
FP4 = ("nvfp4", "nvfp4_awq", "mxfp4", "mxfp8")
ALL = (*ANYWHERE, *FP8, *FP4)


def _levels(native: tuple[str, ...], otherwise: Level) -> Mapping[str, Level]:
    return MappingProxyType({name: "native" if name in native else otherwise for name in ALL})


# Tensor core formats by compute capability: the support matrix of TensorRT-LLM 1.2
# (docs/source/features/quantization.md, docs/source/legacy/reference/support-matrix.md). CPUs have integer
# arithmetic; every number of FP8 and FP4 is rounded through the format there, and products are computed in the engine's
# dtype: the format's results without its speed. A KV cache of 8 bits is stored in 8 bits everywhere, and numbers are
# converted where they are read.
SUPPORT: Mapping[str, Mapping[str, Level]] = MappingProxyType(
    {
        "x86-64-v3": _levels(ANYWHERE, "simulated"),
        "x86-64-v4": _levels(ANYWHERE, "simulated"),
        "sm_80": _levels(ANYWHERE, "none"),
        "sm_86": _levels(ANYWHERE, "none"),
        "sm_89": _levels((*ANYWHERE, *FP8), "none"),
        "sm_90": _levels((*ANYWHERE, *FP8), "none"),
        "sm_100": _levels(ALL, "none"),
        "sm_103": _levels(ALL, "none"),
        "sm_120": _levels(ALL, "none"),
    }
)


# What the embedded backend's own GPU kernels multiply, by the architectures that they were tried on.
COMPILED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"sm_90": ("none", "fp8", "fp8_dynamic", "int8_wo", "int4_wo", "int4_awq")}
)


def compile_problem(arch: str, algorithm: str) -> tuple[str, str] | None:
    """(why, what to use) when the embedded backend compiles no such engine; None when it does."""
    if not arch.startswith("sm_"):
        return None
    if arch not in COMPILED:
        return f"this version's own GPU kernels are for {', '.join(COMPILED)}", "use another gpu, or a CPU"
    if algorithm not in COMPILED[arch]:
        able = ", ".join(COMPILED[arch])
        return f"this version has no kernel for {algorithm} on {arch}", f"use one of {able}"
    return None


def support_of(arch: str, algorithm: str) -> Level:
    """How an algorithm runs on an architecture of the catalogue. Raises KeyError for names outside both tables."""
    return SUPPORT[arch][algorithm]


def support_problem(arch: str, algorithm: str) -> tuple[str, str, str] | None:
    """("error" or "warning", what, why) when a combination does not run or is simulated; None when it is native."""
    level = support_of(arch, algorithm)
    if level == "native":
        return None
    if level == "simulated":
        why = f"this processor has no {algorithm} arithmetic: results are those of the format, speed is not"
        return "warning", f"{algorithm} is simulated on {arch}", why
    able = [name for name, levels in SUPPORT.items() if levels[algorithm] == "native"]
    return "error", f"{algorithm} does not run on {arch}", f"it needs {', '.join(able)}"
