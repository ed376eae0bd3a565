"""Number formats: on this GPU, by what the code refuses whatever the documents say, and for this model."""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.hard_rules import SM100_PLUGINS
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, refuse_by
from trtx.backends.tensorrt_llm.support import check_gpu, check_model

# What trtllm-build refuses on GPUs of compute capability 10: weights or activations in integers.
INTEGER_FORMATS = ("int8_wo", "int4_wo", "int8_sq", "fp8_dynamic")
FIRST_FP8 = 89
ALGORITHM = ("quantization", "algorithm")
KV_CACHE = ("quantization", "kv_cache")


def check_format_on_gpu(subject: Subject) -> Iterator[Refusal]:
    algorithm, release = subject.algorithm, subject.release
    verdict = check_gpu(release, subject.flow, subject.sm, algorithm)
    at = ALGORITHM if algorithm != "none" and subject.variant.algorithm != "none" else ("gpu",)
    if _is_mixed(subject):
        return
    if verdict.supported is False:
        yield Refusal(
            "precision-gpu",
            at,
            f"{algorithm} does not run on {subject.gpu.name} with {subject.title}"
            if algorithm != "none"
            else f"{subject.title} does not run on {subject.gpu.name}",
            verdict.why,
            "choose another algorithm, GPU or release" if algorithm != "none" else "choose a newer release",
            verdict.source,
        )
    elif verdict.supported is None:
        yield Refusal(
            "precision-gpu",
            ("gpu",),
            f"whether {subject.title} runs {algorithm} on {subject.gpu.name} is not documented",
            verdict.why,
            "",
            verdict.source,
            "warning",
        )


def check_integers_on_blackwell(subject: Subject) -> Iterator[Refusal]:
    """tensorrt_llm/builder.py raises for these, and the documents list them."""
    if subject.flow != "engine" or not 100 <= subject.sm < 120:
        return
    if subject.algorithm in INTEGER_FORMATS:
        what = f"trtllm-build refuses {subject.algorithm} on {subject.gpu.name} (sm_{subject.sm})"
        yield refuse_by(subject, "sm100-integer-formats", ALGORITHM, what, "use fp8 or nvfp4 there")
    if subject.variant.kv_cache == "int8":
        what = f"trtllm-build refuses an INT8 KV cache on {subject.gpu.name} (sm_{subject.sm})"
        yield refuse_by(subject, "sm100-integer-formats", KV_CACHE, what, "use kv_cache: fp8, or auto")


def _is_mixed(subject: Subject) -> bool:
    return subject.algorithm == "w4a8_awq" and 0 < subject.sm < FIRST_FP8


def check_mixed_awq(subject: Subject) -> Iterator[Refusal]:
    if _is_mixed(subject):
        what = f"{subject.gpu.name} (sm_{subject.sm}) has no kernel for INT4 weights with FP8 activations"
        yield refuse_by(subject, "w4a8-sm", ALGORITHM, what, "use int4_awq")


def check_kv_format(subject: Subject) -> Iterator[Refusal]:
    kv_cache = subject.variant.kv_cache
    if kv_cache == "int8" and subject.flow == "pytorch":
        yield Refusal(
            "kv-format",
            KV_CACHE,
            f"the PyTorch flow of {subject.title} has no INT8 KV cache",
            "it has FP8 and NVFP4",
            "use kv_cache: fp8, or auto",
            "docs/source/features/quantization.md of 1.3.0rc3",
        )
    if kv_cache == "fp8" and subject.flow == "engine" and 0 < subject.sm < FIRST_FP8:
        yield Refusal(
            "kv-format",
            KV_CACHE,
            f"an engine for {subject.gpu.name} (sm_{subject.sm}) has no FP8 KV cache",
            f"FP8 arithmetic begins with sm_{FIRST_FP8}",
            "use kv_cache: int8, or auto",
            "docs/source/legacy/reference/support-matrix.md of 1.3.0rc3",
        )


def check_plugins_on_b200(subject: Subject) -> Iterator[Refusal]:
    if subject.flow != "engine" or subject.sm != 100:
        return
    for name in (*SM100_PLUGINS, "bert_context_fmha_fp32_acc"):
        if subject.plugin(name) not in (None, "disable"):
            what = f"{name} cannot be built on {subject.gpu.name} (sm_100)"
            yield refuse_by(subject, "sm100-plugins", subject.place_of(name), what, "remove it, or write disable")


def check_format_of_model(subject: Subject) -> Iterator[Refusal]:
    """Engines: the documents of a backend that is over are final. The PyTorch backend's lag behind its code."""
    if subject.shape is None or subject.algorithm == "none":
        return
    verdict = check_model(subject.release, subject.flow, subject.shape.architecture, subject.algorithm)
    if verdict.supported is False:
        engine = subject.flow == "engine"
        yield Refusal(
            "precision-model",
            ALGORITHM if subject.variant.algorithm != "none" else ("model", "source"),
            f"{subject.title} does not list {subject.shape.architecture} with {subject.algorithm}"
            f" in its {'engine' if engine else 'PyTorch'} flow",
            verdict.why,
            "choose another algorithm" if engine else "try it on one GPU first: documents lag behind the code",
            verdict.source,
            "error" if engine else "warning",
        )


CHECKS = (
    check_format_on_gpu,
    check_integers_on_blackwell,
    check_mixed_awq,
    check_kv_format,
    check_plugins_on_b200,
    check_format_of_model,
)
