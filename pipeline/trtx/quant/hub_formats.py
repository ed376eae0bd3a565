"""Formats of quantized checkpoints that others than ModelOpt write, from `quantization_config` of config.json.

AutoAWQ: https://huggingface.co/docs/transformers/quantization/awq; GPTQ (AutoGPTQ, GPTQModel, Optimum):
https://huggingface.co/docs/transformers/quantization/gptq; compressed-tensors (llm-compressor, vLLM):
https://huggingface.co/docs/transformers/quantization/compressed_tensors. Imports no torch: plans read sources with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from trtx.errors import UsageProblem
from trtx.models.formats import WHOLE_ROW, Algorithm, KvCacheFormat, Packing, QuantFormat

Facts = Mapping[str, Any]

AUTOGPTQ_OWN_GROUP = AWQ_OWN_GROUP = 128
# Settings of a compressed-tensors scheme that say nothing about the numbers.
OBSERVING = ("observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype", "block_structure", "group_size")


class Tensors(Protocol):
    """Which tensors a checkpoint has; trtx.models.checkpoint.Checkpoint is one, and what a plan reads of a source."""

    @property
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...


def refuse(path: str, key: str, value: object, why: str) -> UsageProblem:
    """The error for a setting that cannot be run, or that contradicts another."""
    return UsageProblem(f"{path} says {key}: {value}", why=why, fix="choose another checkpoint of the model")


def read_awq(path: str, facts: Facts, checkpoint: Tensors) -> QuantFormat:
    """AutoAWQ's "gemm" packing of 4 bits."""
    key = "quantization_config"
    if facts.get("bits", 4) != 4:
        raise refuse(path, f"{key}.bits", facts["bits"], "AutoAWQ packs 4 bits")
    if str(facts.get("version", "gemm")).lower() != "gemm":
        raise refuse(path, f"{key}.version", facts["version"], "only AutoAWQ's gemm packing is read")
    kept = facts.get("modules_to_not_convert") or []
    return QuantFormat(
        algorithm="int4_awq",
        # AutoAWQ keeps every module whose name has such a text in it.
        exclude=_kept(
            checkpoint,
            "qweight",
            lambda module: any(text in module for text in kept),
            path,
            f"{key}.modules_to_not_convert",
        ),
        group_size=_group(path, f"{key}.group_size", facts.get("group_size", AWQ_OWN_GROUP)),
        zero_points=bool(facts.get("zero_point", True)),
        packing="awq",
    )


def read_gptq(path: str, facts: Facts, checkpoint: Tensors) -> QuantFormat:
    """GPTQ's packing of 4 or 8 bits, with or without act-order and zero points, both checkpoint formats."""
    key = "quantization_config"
    bits, written = facts.get("bits"), facts.get("checkpoint_format", "gptq")
    if bits not in (4, 8):
        raise refuse(path, f"{key}.bits", bits, "4 and 8 bits are read")
    packings: dict[str, Packing] = {"gptq": "gptq", "gptq_v2": "gptq_v2"}
    if written not in packings:
        raise refuse(path, f"{key}.checkpoint_format", written, "gptq and gptq_v2 are read")
    dynamic: Mapping[str, Any] = facts.get("dynamic") or {}
    if own := [rule for rule in dynamic if not rule.startswith("-:")]:
        raise refuse(path, f"{key}.dynamic", own[0], "an engine has one format besides the unquantized one")
    group = _group(path, f"{key}.group_size", facts.get("group_size", AUTOGPTQ_OWN_GROUP))
    symmetric, whole = bool(facts.get("sym", True)), group == WHOLE_ROW
    algorithm: Algorithm = "int4_gptq"
    if bits == 8:
        algorithm = "int8_wo" if symmetric and whole else "int8_gptq"
    return QuantFormat(
        algorithm=algorithm,
        exclude=_kept(
            checkpoint,
            "qweight",
            lambda module: any(re.match(rule[2:], module) for rule in dynamic),
            path,
            f"{key}.dynamic",
        ),
        group_size=None if algorithm == "int8_wo" else group,
        zero_points=not symmetric,
        # A row that is one group has its columns in order whatever their rank was.
        reordered=bits == 4 and bool(facts.get("desc_act", False)) and not whole,
        packing=packings[written],
    )


def read_compressed_tensors(path: str, facts: Facts, checkpoint: Tensors) -> QuantFormat:
    """FP8 of compressed-tensors: weights with a scale per tensor or per channel, activations static or per token."""
    key = "quantization_config"
    if facts.get("format") not in ("float-quantized", "naive-quantized"):
        raise refuse(path, f"{key}.format", facts.get("format"), "of compressed-tensors only FP8 is read")
    groups: Mapping[str, Facts] = facts.get("config_groups") or {}
    schemes = {
        str((_numbers(group.get("weights")), _numbers(group.get("input_activations")))) for group in groups.values()
    }
    if len(schemes) != 1:
        raise refuse(path, f"{key}.config_groups", len(schemes), "an engine has one format besides the unquantized one")
    targets = [target for group in groups.values() for target in group.get("targets") or ()]
    ignored = list(facts.get("ignore") or ())

    def is_kept(module: str) -> bool:
        return _named(module, ignored) or not ("Linear" in targets or _named(module, targets))

    first = next(iter(groups.values()))
    return QuantFormat(
        algorithm=_fp8_algorithm(path, f"{key}.config_groups", first),
        kv_cache=_fp8_kv_cache(path, f"{key}.kv_cache_scheme", facts.get("kv_cache_scheme")),
        exclude=_kept(checkpoint, "weight_scale", is_kept, path, f"{key}.ignore"),
    )


def _fp8_algorithm(path: str, key: str, group: Facts) -> Algorithm:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    if (weights.get("num_bits"), weights.get("type")) != (8, "float"):
        raise refuse(path, f"{key}.weights", dict(weights), "of compressed-tensors only FP8 is read")
    if weights.get("strategy") not in ("tensor", "channel") or weights.get("dynamic"):
        raise refuse(path, f"{key}.weights.strategy", weights.get("strategy"), "a scale per tensor or channel is read")
    if not inputs or (inputs.get("num_bits"), inputs.get("type")) != (8, "float"):
        raise refuse(path, f"{key}.input_activations", inputs, "FP8 activations are read")
    kinds: dict[tuple[bool, object], Algorithm] = {(False, "tensor"): "fp8", (True, "token"): "fp8_dynamic"}
    kind = (bool(inputs.get("dynamic")), inputs.get("strategy"))
    if kind not in kinds:
        why = "static scales per tensor and dynamic ones per token are read"
        raise refuse(path, f"{key}.input_activations.strategy", inputs.get("strategy"), why)
    return kinds[kind]


def _fp8_kv_cache(path: str, key: str, scheme: Facts | None) -> KvCacheFormat:
    if not scheme:
        return "auto"
    kinds: dict[tuple[Any, Any], KvCacheFormat] = {(8, "float"): "fp8", (8, "int"): "int8"}
    kind = (scheme.get("num_bits"), scheme.get("type"))
    usual = scheme.get("strategy") == "tensor" and not scheme.get("dynamic") and scheme.get("symmetric", True)
    if kind not in kinds or not usual:
        raise refuse(path, key, dict(scheme), "static scales per tensor of 8 bits are read")
    return kinds[kind]


def _numbers(scheme: Facts | None) -> str:
    return str(sorted((name, value) for name, value in (scheme or {}).items() if name not in OBSERVING))


def _named(module: str, patterns: Iterable[str]) -> bool:
    """Whether a name or a `re:` pattern of compressed-tensors is about a module."""
    return any(
        re.match(pattern[3:], module) is not None if pattern.startswith("re:") else pattern == module
        for pattern in patterns
    )


def _group(path: str, key: str, group: object) -> int | None:
    """None for the own size of 4-bit formats."""
    if not isinstance(group, int) or group == 0 or group < WHOLE_ROW or (group > 0 and group % 8):
        raise refuse(path, key, group, "it should be a multiple of 8 columns, or -1 for whole rows")
    return None if group == AUTOGPTQ_OWN_GROUP else group


def _kept(checkpoint: Tensors, mark: str, is_kept: Callable[[str], bool], path: str, key: str) -> tuple[str, ...]:
    """The modules that keep their numbers: those of the checkpoint with a matrix that is not quantized.

    `mark` names the tensor that quantized ones have. Raises UsageProblem when one of them should be kept.
    """
    quantized = {name.removesuffix(f".{mark}") for name in checkpoint.names if name.endswith(f".{mark}")}
    if odd := [module for module in sorted(quantized) if is_kept(module)]:
        raise refuse(path, key, odd[0], f"and there is {odd[0]}.{mark}")
    matrices = [name for name in checkpoint.names if name.endswith(".weight") and len(checkpoint.shape(name)) == 2]
    return tuple(sorted({name.removesuffix(".weight") for name in matrices} - quantized))


READERS: dict[str, Callable[[str, Facts, Tensors], QuantFormat]] = {
    "awq": read_awq,
    "gptq": read_gptq,
    "compressed-tensors": read_compressed_tensors,
}
