"""Which number formats a checkpoint has, from its config files."""

from __future__ import annotations

from pathlib import Path

from trtx.errors import UsageProblem, did_you_mean
from trtx.models.checkpoint import Checkpoint, read_entry
from trtx.models.formats import ALGORITHMS, Algorithm, QuantFormat

FORMAT_FILE = "hf_quant_config.json"


def read_quant_format(checkpoint: Checkpoint) -> QuantFormat:
    """The number formats of a checkpoint, from its hf_quant_config.json; unquantized when there is none.

    ModelOpt names both 4-bit formats W4A16_AWQ; a scale that AWQ left on an input tells them apart.

    Raises UsageProblem for a format that trtx cannot run.
    """
    path = checkpoint.folder / FORMAT_FILE
    if not path.is_file():
        return QuantFormat()
    facts = read_entry(path, "quantization")
    kv_cache, name = facts.get("kv_cache_quant_algo"), facts.get("quant_algo")
    if kv_cache not in (None, "FP8"):
        raise _unknown(path, "KV cache format", kv_cache, ["FP8"])
    is_awq = any(tensor.endswith(".pre_quant_scale") for tensor in checkpoint.names)
    by_name: dict[str | None, Algorithm] = {
        None: "none",
        "FP8": "fp8",
        "W8A8_SQ_PER_CHANNEL": "int8_sq",
        "W8A16": "int8_wo",
        "W4A16_AWQ": "int4_awq" if is_awq else "int4_wo",
    }
    if name not in by_name:
        raise _unknown(path, "quantization", name, [known for known in by_name if known])
    algorithm = by_name[name]
    group = ALGORITHMS[algorithm].group_size
    if group and facts.get("group_size") != group:
        raise UsageProblem(
            f"{name} with groups of {facts.get('group_size')} columns is not supported",
            why=f"{path} says so",
            fix=f"quantize with groups of {group}",
        )
    return QuantFormat(
        algorithm=algorithm,
        kv_cache="fp8" if kv_cache else "auto",
        exclude=tuple(facts.get("exclude_modules") or ()),
    )


def _unknown(path: Path, what: str, name: str, known: list[str]) -> UsageProblem:
    return UsageProblem(
        f"the {what} {name!r} cannot be run", why=f"{path} names it", fix=did_you_mean(str(name), known)
    )
