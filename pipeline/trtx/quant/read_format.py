"""Which number formats a checkpoint has, from its config files.

ModelOpt writes hf_quant_config.json and, in newer versions, the same into config.json; all others write
`quantization_config` of config.json only, and say by `quant_method` who they are. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trtx.errors import UsageProblem, VerificationFailed, did_you_mean
from trtx.models.formats import Algorithm, KvCacheFormat, QuantFormat
from trtx.models.json_files import read_json_file
from trtx.quant.hub_formats import READERS, Tensors, refuse

FORMAT_FILE = "hf_quant_config.json"
CONFIG_ENTRY = "quantization_config"

# ModelOpt's names. It calls three 4-bit formats W4A16_AWQ; a scale that AWQ left on an input tells one of them apart.
BY_NAME: dict[str | None, Algorithm] = {
    None: "none",
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_dynamic",
    "fp8_pb_wo": "fp8_block_wo",
    "FP8_PB_WO": "fp8_block_wo",
    "W8A8_SQ_PER_CHANNEL": "int8_sq",
    "W8A16": "int8_wo",
    "W4A16_AWQ": "int4_wo",
    "W4A8_AWQ": "w4a8_awq",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4_awq",
    "mxfp4": "mxfp4",
    "MXFP4": "mxfp4",
    "MXFP8": "mxfp8",
}
KV_CACHES: dict[str | None, KvCacheFormat] = {None: "auto", "FP8": "fp8", "INT8": "int8"}
# Formats whose groups are of one size only.
FIXED_GROUPS = {"nvfp4": 16, "nvfp4_awq": 16, "mxfp4": 32, "mxfp8": 32}


class Stored(Tensors, Protocol):
    """A checkpoint in a folder; trtx.models.checkpoint.Checkpoint is one."""

    @property
    def folder(self) -> Path: ...


def read_quant_format(checkpoint: Stored) -> QuantFormat:
    """The number formats of a checkpoint; unquantized when its config files say nothing about it.

    Raises UsageProblem for a format that trtx cannot run and for files that contradict each other, VerificationFailed
    for a file that is damaged.
    """
    path, config = checkpoint.folder / FORMAT_FILE, checkpoint.folder / "config.json"
    described = read_json_file(path) if path.is_file() else None
    said = read_json_file(config) if config.is_file() else {}
    return decide_format(str(checkpoint.folder), said, described, checkpoint)


def is_quantized(folder: Path) -> bool:
    """Whether the config files of a model folder say that its numbers are quantized."""
    path, config = folder / FORMAT_FILE, read_json_file(folder / "config.json")
    described = read_json_file(path) if path.is_file() else None
    return says_quantized(config, described)


def says_quantized(config: Mapping[str, Any], described: Mapping[str, Any] | None) -> bool:
    """The same of the content of config.json and of hf_quant_config.json, None where there is none."""
    facts = (described or {}).get("quantization") or {}
    if not isinstance(facts, Mapping):
        return True  # decide_format says what is wrong with it
    named = any(facts.get(name) is not None for name in ("quant_algo", "kv_cache_quant_algo"))
    return named or bool(config.get(CONFIG_ENTRY))


def decide_format(
    where: str, config: Mapping[str, Any], described: Mapping[str, Any] | None, checkpoint: Tensors
) -> QuantFormat:
    """The formats by the content of config.json and of hf_quant_config.json, None where there is none.

    `where` is the folder or URL for messages. Raises as read_quant_format does.
    """
    try:
        return _decide(where, config, described, checkpoint)
    except (AttributeError, IndexError, TypeError, ZeroDivisionError, re.error) as error:
        # What others wrote: a text where a list belongs, a scale without a dimension, and so on without end.
        raise VerificationFailed(
            f"the quantization of {where} is described in a form that cannot be read",
            why=f"{CONFIG_ENTRY} of config.json, or {FORMAT_FILE}: {error}",
            fix="fetch or export the checkpoint again",
        ) from error


def _decide(
    where: str, config: Mapping[str, Any], described: Mapping[str, Any] | None, checkpoint: Tensors
) -> QuantFormat:
    path, config_path, said = f"{where}/{FORMAT_FILE}", f"{where}/config.json", config.get(CONFIG_ENTRY)
    method = said.get("quant_method") if said else None
    if described is not None:
        if not isinstance(facts := described.get("quantization"), Mapping):
            raise VerificationFailed(
                f"{where} is not a whole checkpoint",
                why=f"{FORMAT_FILE} has no 'quantization'",
                fix="fetch or export the checkpoint again",
            )
        if said and (method != "modelopt" or said.get("quant_algo") != facts.get("quant_algo")):
            named = said.get("quant_algo") if method == "modelopt" else method
            raise UsageProblem(
                f"{path} says quant_algo {facts.get('quant_algo')!r} and {config_path} says {CONFIG_ENTRY} {named!r}",
                fix="fetch or export the checkpoint again",
            )
        return read_modelopt(checkpoint, path, facts)
    if not said:
        return QuantFormat()
    if method == "modelopt":
        return read_modelopt(checkpoint, config_path, _from_config(said))
    if method not in READERS:
        raise UsageProblem(
            f"the quantization {method!r} cannot be run",
            why=f"{config_path} names it as {CONFIG_ENTRY}.quant_method",
            fix=did_you_mean(str(method), [*READERS, "modelopt"]),
        )
    return READERS[method](config_path, said, checkpoint)


def read_modelopt(checkpoint: Tensors, path: str, facts: Mapping[str, Any]) -> QuantFormat:
    """The formats by ModelOpt's description of them, `quantization` of hf_quant_config.json."""
    name, left_out = facts.get("quant_algo"), facts.get("exclude_modules") or ()
    if isinstance(left_out, str):
        raise refuse(path, "exclude_modules", left_out, "it should be a list of modules")
    excluded = tuple(left_out)
    if name == "MIXED_PRECISION":
        facts, excluded = _read_mixed(checkpoint, path, facts)
        name = facts.get("quant_algo")
    kv_cache = facts.get("kv_cache_quant_algo")
    if kv_cache not in KV_CACHES:
        raise _unknown(path, "KV cache format", kv_cache, KV_CACHES)
    if name not in BY_NAME:
        raise _unknown(path, "quantization", name, BY_NAME)
    algorithm = BY_NAME[name]
    if name == "W4A16_AWQ" and any(tensor.endswith(".pre_quant_scale") for tensor in checkpoint.names):
        algorithm = "int4_awq"
    return QuantFormat(
        algorithm=algorithm,
        kv_cache=KV_CACHES[kv_cache],
        exclude=excluded,
        group_size=_read_group_size(checkpoint, path, facts, algorithm),
    )


def _read_group_size(checkpoint: Tensors, path: str, facts: Mapping[str, Any], algorithm: Algorithm) -> int | None:
    """Columns per scale, None for the algorithm's own. Where the description has none, the shape of a scale tells."""
    own, group = QuantFormat(algorithm=algorithm).columns_per_scale, facts.get("group_size")
    if own is None:
        return None
    if algorithm in FIXED_GROUPS:
        if group not in (None, own):
            raise refuse(path, "group_size", group, f"{algorithm} has groups of {own}")
        return None
    if facts.get("has_zero_point"):
        raise refuse(path, "has_zero_point", True, "ModelOpt writes no zero points")
    if group is None:
        name = next((n.removesuffix(".weight_scale") for n in checkpoint.names if n.endswith(".weight_scale")), None)
        if name is None:
            return None
        group = checkpoint.shape(f"{name}.weight")[1] // checkpoint.shape(f"{name}.weight_scale")[1]
    if not isinstance(group, int) or group < 2 or group % 2:
        raise refuse(path, "group_size", group, "it should be an even number of columns")
    return None if group == own else group


def _read_mixed(checkpoint: Tensors, path: str, facts: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """One format for some linears and none for the rest; more than one cannot be run."""
    layers: Mapping[str, Mapping[str, Any]] = facts.get("quantized_layers") or {}
    kinds = {tuple(sorted(layer.items())) for layer in layers.values()}
    if len(kinds) != 1:
        names = ", ".join(sorted({str(layer.get("quant_algo")) for layer in layers.values()})) or "none"
        raise refuse(path, "quantized_layers", names, "an engine has one format besides the unquantized one")
    modules = {name.removesuffix(".weight") for name in checkpoint.names if name.endswith(".weight")}
    return {**facts, **dict(next(iter(kinds)))}, tuple(sorted(modules - set(layers)))


def _from_config(said: Mapping[str, Any]) -> dict[str, Any]:
    """ModelOpt's `quantization_config` in the words of its hf_quant_config.json."""
    scheme = said.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        scheme = "FP8" if scheme.get("type") == "float" and scheme.get("num_bits") == 8 else str(dict(scheme))
    groups = [group.get("weights") or {} for group in (said.get("config_groups") or {}).values()]
    group_size = groups[0].get("group_size") if groups else None
    return {
        "group_size": group_size,
        **{name: said[name] for name in ("quant_algo", "quantized_layers", "group_size") if name in said},
        "kv_cache_quant_algo": scheme,
        "exclude_modules": said.get("ignore"),
    }


def _unknown(path: str, what: str, name: Any, known: Mapping[Any, str]) -> UsageProblem:
    names = [each for each in known if each]
    return UsageProblem(
        f"the {what} {name!r} cannot be run", why=f"{path} names it", fix=did_you_mean(str(name), names)
    )
