"""Plugins and switches that the builder refuses in some company, or silently switches off again."""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, refuse_by

SWIGLU = ("gemm_swiglu_plugin", "low_latency_gemm_swiglu_plugin")
FUSING_MODELS = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")


def _is_on(subject: Subject, name: str) -> bool:
    return subject.plugin(name) not in (None, "disable", "false")


def check_refused(subject: Subject) -> Iterator[Refusal]:
    """What ends a build."""
    if subject.flow != "engine":
        return
    shape = subject.shape
    if _is_on(subject, "streamingllm"):
        place = subject.place_of("streamingllm")
        yield refuse_by(subject, "streamingllm", place, f"{subject.title} refuses streamingllm", "remove it")
    if _is_on(subject, "pp_reduce_scatter") and shape is not None and shape.architecture != "MixtralForCausalLM":
        what = f"pp_reduce_scatter is for Mixtral only, and this is {shape.architecture}"
        yield refuse_by(subject, "pp-reduce-scatter", subject.place_of("pp_reduce_scatter"), what, "remove it")
    for name in SWIGLU:
        if _is_on(subject, name) and subject.algorithm != "fp8":
            what = f"{name} is for FP8 only, and this variant is {subject.algorithm}"
            yield refuse_by(subject, "swiglu-plugins", subject.place_of(name), what, "remove it, or use fp8")
        elif _is_on(subject, name) and subject.plugin("use_fused_mlp") == "disable":
            what = f"{name} needs use_fused_mlp, which is disabled here"
            yield refuse_by(subject, "swiglu-plugins", subject.place_of(name), what, "write use_fused_mlp: enable")


def check_paged_attention(subject: Subject) -> Iterator[Refusal]:
    """Chunked prompts and reused blocks are read through paged context attention."""
    if subject.flow != "engine" or subject.plugin("use_paged_context_fmha") != "disable":
        return
    cache, scheduler = subject.engine.kv_cache, subject.engine.scheduler
    needs = [name for name, on in (("reuse", cache.reuse), ("chunked_prefill", scheduler.chunked_prefill)) if on]
    if needs:
        yield Refusal(
            "paged-fmha",
            subject.place_of("use_paged_context_fmha"),
            f"{' and '.join(needs)} cannot work without use_paged_context_fmha",
            "blocks of a KV cache are read by paged context attention only",
            "remove it, or set kv_cache.reuse and scheduler.chunked_prefill to false",
            "docs/source/advanced/kv-cache-reuse.md",
        )


def check_switched_off(subject: Subject) -> Iterator[Refusal]:
    """What a build goes on without, saying so in its log only."""
    if subject.flow != "engine":
        return
    shape, tensor = subject.shape, subject.parallelism.tensor
    if _is_on(subject, "use_fp8_context_fmha") and 0 < subject.sm < 89:
        what = f"use_fp8_context_fmha will be switched off: {subject.gpu.name} is sm_{subject.sm}"
        yield _off(subject, "fp8-fmha-sm", "use_fp8_context_fmha", what)
    if _is_on(subject, "use_paged_context_fmha") and subject.variant.kv_cache == "int8":
        what = "use_paged_context_fmha will be switched off: the KV cache is INT8"
        yield _off(subject, "paged-fmha-int8-kv", "use_paged_context_fmha", what)
    if _is_on(subject, "use_fused_mlp") and subject.algorithm not in ("none", "fp8", "fp8_dynamic"):
        what = f"use_fused_mlp will be switched off: the variant is {subject.algorithm}"
        yield _off(subject, "fused-mlp", "use_fused_mlp", what)
    if _is_on(subject, "reduce_fusion"):
        if tensor == 1:
            what = "reduce_fusion will be switched off: tensor parallelism is 1"
            yield _off(subject, "reduce-fusion", "reduce_fusion", what)
        elif shape is not None and shape.architecture not in FUSING_MODELS:
            what = f"reduce_fusion will be switched off: this is {shape.architecture}"
            yield _off(subject, "reduce-fusion", "reduce_fusion", what)
    yield from _check_fusions(subject)


def _check_fusions(subject: Subject) -> Iterator[Refusal]:
    if _is_on(subject, "user_buffer") and not _is_on(subject, "reduce_fusion"):
        what = "user_buffer will be switched off: reduce_fusion is not on"
        yield _off(subject, "user-buffer", "user_buffer", what)
    if _is_on(subject, "norm_quant_fusion"):
        is_llama = subject.shape is None or subject.shape.architecture == "LlamaForCausalLM"
        why = (
            f"the variant is {subject.algorithm}"
            if subject.algorithm != "nvfp4"
            else "reduce_fusion is on"
            if _is_on(subject, "reduce_fusion")
            else ""
            if is_llama
            else "it is for Llama only"
        )
        if why:
            what = f"norm_quant_fusion will be switched off: {why}"
            yield _off(subject, "norm-quant-fusion", "norm_quant_fusion", what)
    if _is_on(subject, "gather_generation_logits"):
        what = "gather_generation_logits does nothing when an engine is built: it is a flag of the runtime"
        yield _off(subject, "generation-logits", "gather_generation_logits", what)


def _off(subject: Subject, rule: str, name: str, what: str) -> Refusal:
    return refuse_by(subject, rule, subject.place_of(name), what, "remove it", at_key=True)


CHECKS = (check_refused, check_paged_attention, check_switched_off)
