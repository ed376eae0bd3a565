"""What every setting of a recipe does to the cache: the one declared table, held true by a test that flips them all.

A row is a setting, with `*` for a free name or a list index, and either the factors that it becomes, stage by stage,
or the reason why it becomes none. What follows a stage by its inputs is redone with it and stands in no row.
`targets.*.engine.…` has no rows: it does what `engine.…` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trtx.plan.effects_tensorrt_llm import ALL, WHOLE, spec_paths
from trtx.recipe.problems import Path

# In the order of a plan.
STAGES = ("download", "dataset", "calibrate", "convert", "build", "benchmark", "package")

ONE_VALUE = "has only one value"
RUNNER = "runner settings move no key"
REPORT = "for readers only"
GATES = "gates judge results and change none"
CELLS = "decides which engines are made and changes none of them"
READING = "gone once the file is read: what it changes counts as the setting that it changes"


@dataclass(frozen=True)
class Effect:
    """Factors by stage (paths inside a step's own factors), or the reason for none.

    `whole` are stages whose steps the setting makes others altogether, or none.
    """

    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reason: str = ""
    whole: tuple[str, ...] = ()


def _becomes(**factors: str) -> Effect:
    """Paths below `params`, several with a space between them."""
    return Effect({stage: tuple(f"params.{path}" for path in paths.split()) for stage, paths in factors.items()})


def _none(reason: str) -> Effect:
    return Effect(reason=reason)


# A measurement belongs to this machine, or on a cluster to the target, which is one kind of machine.
MEASURED = Effect({"benchmark": ("machine.cpu", "machine.cpus", "machine.target")})

OWN_EFFECTS: Mapping[str, Effect] = {
    "schema": _none(ONE_VALUE),
    "name": _becomes(package="name"),
    "description": _none(REPORT),
    "extends": _none(READING),
    "vars": _none(READING),
    "matrix.axes.*.path": _none(READING),
    "matrix.axes.*.values": _none(READING),
    "matrix.exclude": _none(CELLS),
    "model.source": _becomes(download="url identity"),
    "model.revision": _becomes(download="identity"),
    "model.allow_pickle": _becomes(download="allow_pickle"),
    "quantization.*.algorithm": _becomes(calibrate="quantization.algorithm", build="quantization.algorithm"),
    "quantization.*.kv_cache": _becomes(calibrate="quantization.kv_cache", build="quantization.kv_cache"),
    "quantization.*.exclude": _becomes(calibrate="quantization.exclude", build="quantization.exclude"),
    "quantization.*.calibration.dataset": _becomes(dataset="url identity"),
    "quantization.*.calibration.revision": _becomes(dataset="identity"),
    "quantization.*.calibration.split": _becomes(dataset="split identity"),
    "quantization.*.calibration.column": _becomes(dataset="column"),
    "quantization.*.calibration.samples": _becomes(dataset="samples", calibrate="samples"),
    "quantization.*.calibration.heldout": _becomes(dataset="heldout"),
    "quantization.*.calibration.max_length": _becomes(calibrate="max_length"),
    "quantization.*.calibration.batch_size": _becomes(calibrate="batch_size"),
    "quantization.*.calibration.seed": _becomes(dataset="seed", calibrate="seed"),
    "engine.backend": Effect(whole=ALL),
    "engine.dtype": _becomes(convert="dtype", build="dtype"),
    "engine.limits.max_batch_size": _becomes(build="limits.max_batch_size"),
    "engine.limits.max_num_tokens": _becomes(build="limits.max_num_tokens"),
    "engine.limits.max_seq_len": _becomes(build="limits.max_seq_len"),
    "engine.kv_cache.tokens_per_block": _becomes(build="tokens_per_block"),
    "engine.kv_cache.memory_fraction": _becomes(benchmark="memory_fraction", package="memory_fraction"),
    "engine.kv_cache.size": _becomes(benchmark="kv_cache_bytes", package="kv_cache_bytes"),
    "engine.kv_cache.reuse": _becomes(benchmark="scheduler.prefix_reuse", package="scheduler.prefix_reuse"),
    **{
        f"engine.{name}": Effect()
        for name in (
            *("limits.max_input_len", "limits.max_beam_width", "kv_cache.host_size", "release", "flow", "probe"),
            *("container", "converter", "preset", "profiles", "plugins", "build_options", "llm_options"),
            *("speculative.mode", "speculative.max_draft_len", "speculative.draft", "lora.max_rank"),
            *("lora.target_modules", "lora.max_adapters", "strict_gpu"),
        )
    },
    "engine.scheduler.policy": _becomes(benchmark="scheduler.policy", package="scheduler.policy"),
    "engine.scheduler.chunked_prefill": _becomes(
        benchmark="scheduler.chunked_prefill", package="scheduler.chunked_prefill"
    ),
    # A GPU computes everything in bfloat16, so the device decides about `dtype: auto` too. What it measures is its own.
    "targets.*.gpu": Effect(
        {
            "convert": ("params.dtype",),
            "build": ("params.arch", "params.dtype", "toolchain.nvcc"),
            "benchmark": ("machine.gpu",),
        }
    ),
    "targets.*.parallelism.tensor": _becomes(convert="tensor", build="rank.tensor"),
    "targets.*.parallelism.pipeline": _becomes(convert="pipeline", build="rank.pipeline"),
    "targets.*.parallelism.context": Effect(),
    "targets.*.parallelism.expert": Effect(),
    "targets.*.parallelism.gpus_per_node": _becomes(package="gpus_per_node"),
    "targets.*.quantization": _none(CELLS),
    "targets.*.runner": MEASURED,
    "targets.*.job.partition": _none(RUNNER),
    "targets.*.job.time": _none(RUNNER),
    "targets.*.job.memory": _none(RUNNER),
    "targets.*.job.cpus": _none(RUNNER),
    "targets.*.job.gpus": _none(RUNNER),
    "benchmark.workloads.*.input_tokens": _becomes(benchmark="workloads.*.input_tokens"),
    "benchmark.workloads.*.output_tokens": _becomes(benchmark="workloads.*.output_tokens"),
    # Without `requests` their number follows from the highest level.
    "benchmark.workloads.*.concurrency": _becomes(benchmark="workloads.*.concurrency workloads.*.requests"),
    "benchmark.workloads.*.requests": _becomes(benchmark="workloads.*.requests"),
    "benchmark.repeats": _becomes(benchmark="repeats"),
    "benchmark.warmup_requests": _becomes(benchmark="warmup_requests"),
    "benchmark.seed": _becomes(benchmark="seed"),
    "gates.slo.*.workload": _none(GATES),
    "gates.slo.*.concurrency": _none(GATES),
    "gates.slo.*.metric": _none(GATES),
    "gates.slo.*.max": _none(GATES),
    "gates.slo.*.min": _none(GATES),
    "gates.accuracy.baseline": _none(GATES),
    "gates.accuracy.metric": _none(GATES),
    "gates.accuracy.max_rise": _none(GATES),
    "gates.regression.baseline": _none(GATES),
    "gates.regression.max_slowdown": _none(GATES),
    "package.image": _becomes(package="image"),
    "package.base": _becomes(package="base"),
    "package.emit": _becomes(package="emit triton_base"),
    "package.triton_base": _becomes(package="triton_base"),
    "serving.api": _none(ONE_VALUE),
    "serving.port": _becomes(package="port"),
    "runners.*.type": MEASURED,
    "runners.*.account": _none(RUNNER),
    "runners.*.partition": _none(RUNNER),
    "runners.*.qos": _none(RUNNER),
    "runners.*.constraint": _none(RUNNER),
    "runners.*.reservation": _none(RUNNER),
    "runners.*.licenses": _none(RUNNER),
    "runners.*.nice": _none(RUNNER),
    "runners.*.exclusive": _none(RUNNER),
    "runners.*.time": _none(RUNNER),
    "runners.*.memory": _none(RUNNER),
    "runners.*.cpus": _none(RUNNER),
    "runners.*.gpus": _none(RUNNER),
    "runners.*.gpu_dialect": _none(RUNNER),
    "runners.*.requeue": _none(RUNNER),
    "runners.*.warn": _none(RUNNER),
    "runners.*.python": _none(RUNNER),
    "runners.*.environment": _none(RUNNER),
    "runners.*.modules": _none(RUNNER),
    "runners.*.setup": _none(RUNNER),
    "runners.*.sbatch": _none(RUNNER),
    "runners.*.throttle": _none(RUNNER),
    "runners.*.submit_from": _none(RUNNER),
    "runners.*.container.runtime": _none(RUNNER),
    "runners.*.container.image": _none(RUNNER),
    "runners.*.container.mounts": _none(RUNNER),
    **{
        f"runners.*.stages.{stage}.{name}": _none(RUNNER)
        for stage in ("calibrate", "convert", "build", "benchmark", "package")
        for name in ("partition", "time", "memory", "cpus", "exclusive")
    },
    "runners.*.nodes.*.gpu": _none(RUNNER),
    "runners.*.nodes.*.gpus": _none(RUNNER),
    "runners.*.nodes.*.slots": _none(RUNNER),
    "runners.*.faults.seed": _none(RUNNER),
    "runners.*.faults.rate": _none(RUNNER),
}


def _complete(row: str, effect: Effect) -> Effect:
    """An effect with what the setting becomes in steps of TensorRT-LLM."""
    factors = {stage: list(paths) for stage, paths in effect.factors.items()}
    for stage, paths in spec_paths(row).items():
        factors.setdefault(stage, []).extend(paths)
    ordered = {stage: tuple(factors[stage]) for stage in STAGES if stage in factors}
    return Effect(ordered, effect.reason, ALL if row in WHOLE else effect.whole)


EFFECTS: Mapping[str, Effect] = {row: _complete(row, effect) for row, effect in OWN_EFFECTS.items()}


def stages_of(path: str | Path) -> tuple[str, ...]:
    """The stages whose own factors a setting changes, or any setting below a section; in the order of a plan.

    `path` is a place of a recipe, or a dotted pattern such as `quantization.*.exclude`.
    """
    found = {stage for row, effect in rows_of(path) for stage in _first_stages(row, effect)}
    return tuple(stage for stage in STAGES if stage in found)


def _first_stages(row: str, effect: Effect) -> tuple[str, ...]:
    """A spec is a factor of all stages that are given it, which would follow the first one anyway."""
    return tuple(OWN_EFFECTS[row].factors) or tuple(effect.factors)[:1] or effect.whole


def reason_of(path: str | Path) -> str:
    """Why a setting, or all of a section, moves no key; empty when it moves one, or for several reasons."""
    reasons = {effect.reason for _, effect in rows_of(path)}
    return next(iter(reasons)) if len(reasons) == 1 else ""


def rows_of(path: str | Path) -> Iterator[tuple[str, Effect]]:
    """The rows of a place: its own, those below a section, or the one that a place inside a value belongs to."""
    place = tuple(path.split(".")) if isinstance(path, str) else path
    if place[:1] == ("targets",) and place[2:3] == ("engine",):
        place = place[2:]
    for row, effect in EFFECTS.items():
        if all(name in ("*", part) for part, name in zip(place, row.split("."), strict=False)):
            yield row, effect


def settings_of(stage: str, factor: Path) -> tuple[str, ...]:
    """The rows that become a factor of a stage, such as `("params", "limits", "max_batch_size")`, or a part of it."""
    return tuple(
        row
        for row, effect in EFFECTS.items()
        if any(is_within(factor, declared) for declared in effect.factors.get(stage, ()))
    )


def is_within(factor: Path, declared: str) -> bool:
    """Whether a factor is a declared one, in which `*` is any name, or a part of it."""
    names = declared.split(".")
    return len(factor) >= len(names) and all(name in ("*", part) for part, name in zip(factor, names, strict=False))
