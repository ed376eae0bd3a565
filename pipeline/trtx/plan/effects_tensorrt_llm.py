"""The rows of trtx.plan.effects for TensorRT-LLM: which setting becomes which part of a step's `spec`.

A spec stands in the parameters of every stage that needs it, so that a row is a path below it and these stages.
"""

from __future__ import annotations

from collections.abc import Mapping

# Stages that have the whole spec, and with them those that have the part that a checkpoint depends on.
SERVED = ("build", "benchmark", "package")
ALL = ("calibrate", "convert", *SERVED)

# Setting → paths below `params.spec`, several with a space between them, and the stages that have them.
SPEC_ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "quantization.*.algorithm": ("quantization.algorithm", ALL),
    "quantization.*.kv_cache": ("quantization.kv_cache", ALL),
    "quantization.*.exclude": ("quantization.exclude", ALL),
    "engine.dtype": ("dtype", ALL),
    "engine.limits.max_batch_size": ("sizes.max_batch_size", SERVED),
    "engine.limits.max_num_tokens": ("sizes.max_num_tokens", SERVED),
    "engine.limits.max_seq_len": ("sizes.max_seq_len", SERVED),
    "engine.limits.max_input_len": ("sizes.max_input_len", SERVED),
    "engine.limits.max_beam_width": ("sizes.max_beam_width", SERVED),
    "engine.kv_cache.tokens_per_block": ("pool.tokens_per_block", SERVED),
    "engine.kv_cache.memory_fraction": ("pool.memory_fraction", SERVED),
    "engine.kv_cache.reuse": ("pool.reuse", SERVED),
    "engine.kv_cache.host_size": ("pool.host_bytes", SERVED),
    "engine.scheduler.policy": ("batching.policy", SERVED),
    "engine.scheduler.chunked_prefill": ("batching.chunked_context", SERVED),
    "engine.release": ("release", ALL),
    "engine.flow": ("flow", SERVED),
    "engine.probe": ("probe", ALL),
    "engine.container": ("container", ALL),
    "engine.converter": ("converter", ALL),
    "engine.preset": ("plugins options", SERVED),
    "engine.profiles": ("profiles", SERVED),
    "engine.plugins": ("plugins", SERVED),
    "engine.build_options": ("options", SERVED),
    "engine.llm_options": ("options", SERVED),
    "engine.speculative.mode": ("speculation.mode", SERVED),
    "engine.speculative.max_draft_len": ("speculation.max_draft_len", SERVED),
    "engine.speculative.draft": ("speculation.draft", SERVED),
    "engine.lora.max_rank": ("lora.max_rank", SERVED),
    "engine.lora.target_modules": ("lora.target_modules", SERVED),
    "engine.lora.max_adapters": ("lora.max_adapters", SERVED),
    "engine.strict_gpu": ("device.name device.memory_bytes", ("build",)),
    "targets.*.gpu": ("device", SERVED),
    "targets.*.parallelism.tensor": ("ranks.tensor", ALL),
    "targets.*.parallelism.pipeline": ("ranks.pipeline", ALL),
    "targets.*.parallelism.context": ("ranks.context", ALL),
    "targets.*.parallelism.expert": ("ranks.expert", ALL),
}
# These decide which steps there are and what they are: any factor of theirs may move with them.
WHOLE = (
    "engine.backend",
    "engine.flow",
    "engine.converter",
    "engine.release",
    "engine.probe",
    "quantization.*.algorithm",
    "quantization.*.kv_cache",
    "targets.*.parallelism.context",
    "targets.*.parallelism.expert",
)


def spec_paths(row: str) -> dict[str, tuple[str, ...]]:
    """The factors of a row by stage."""
    if row not in SPEC_ROWS:
        return {}
    paths, stages = SPEC_ROWS[row]
    return {stage: tuple(f"params.spec.{path}" for path in paths.split()) for stage in stages}
