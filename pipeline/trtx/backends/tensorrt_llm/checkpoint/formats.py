"""Number formats of TensorRT-LLM checkpoints, and which of them holds the numbers of a Hugging Face folder.

Imports no torch. Sources: tensorrt_llm/quantization/mode.py (QuantAlgo), models/modeling_utils.py (QuantConfig and
preprocess_weights), quantization/quantize.py (what is excluded when nothing is said) of 1.3.0rc3.

**INT8 and INT4 weight-only are written as plain numbers, for every release.** convert_checkpoint.py packs them with
the kernels' own interleaving, by an operator of the library that depends on the GPU; quantize.py writes plain numbers,
and preprocess_weights packs them for the GPU that builds. Only the second needs no GPU and fits any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal

from trtx.errors import UsageProblem
from trtx.models.formats import WHOLE_ROW, QuantFormat

KvAlgo = Literal["FP8", "INT8"]

# A format of whole attentions and MLPs: fp8_rowwise_quantize replaces them and the norms before them.
ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"
# Formats whose tensors are known (layout.py). Those of the SmoothQuant plugin are read by nothing here.
QUANT_ALGOS = (
    "W8A16",
    "W4A16",
    "FP8",
    ROWWISE,
    "W8A8_SQ_PER_CHANNEL",
    "W4A16_AWQ",
    "W4A8_AWQ",
    "NVFP4",
)
WEIGHT_ONLY, GROUPED = ("W8A16", "W4A16"), ("W4A16_AWQ", "W4A8_AWQ")
# What the mixture-of-experts layer takes (tensorrt_llm/layers/moe.py) and precision.md lists for Mixtral.
EXPERT_ALGOS = (None, "W8A16", "W4A16", "FP8")
# Modules that no format changes; the loader's own lists when config.json has none, as far as these models have them.
# The last is of FP8_PER_CHANNEL_PER_TOKEN, which also changes norms.
ALWAYS_EXCLUDED = ("*lm_head", "*router", "*vocab_embedding", "*ln_f")
NVFP4_GROUP = 16
DEFAULT_GROUP = 128

# An algorithm of a recipe or a folder → QuantAlgo. int4_wo and int4_gptq have groups of columns and no input scale:
# that is W4A16_AWQ without pre_quant_scale, since W4A16 itself has one scale for a row.
ALGOS: Mapping[str, str | None] = MappingProxyType(
    {
        "none": None,
        "int8_wo": "W8A16",
        "int4_wo": "W4A16_AWQ",
        "int4_gptq": "W4A16_AWQ",
        "int4_awq": "W4A16_AWQ",
        "w4a8_awq": "W4A8_AWQ",
        "fp8": "FP8",
        "fp8_dynamic": ROWWISE,
        "int8_sq": "W8A8_SQ_PER_CHANNEL",
        "nvfp4": "NVFP4",
    }
)
KV_ALGOS: Mapping[str, KvAlgo | None] = MappingProxyType({"auto": None, "fp8": "FP8", "int8": "INT8"})
# Formats of a plain folder that need no calibration: the rest has scales that only ModelOpt's pass over text finds.
ROUNDED_HERE = ("int8_wo", "int4_wo")


@dataclass(frozen=True)
class CheckpointFormat:
    """`quantization` of config.json. `group_size` counts only for formats with groups.

    `exclude` are shell patterns over the engine's module names (`transformer.layers.0.attention.qkv`, layers counted
    from the first of the rank). `packed` says that weight-only numbers are in the kernels' layout, as
    convert_checkpoint.py writes them.
    """

    quant_algo: str | None = None
    kv_cache: KvAlgo | None = None
    group_size: int = DEFAULT_GROUP
    pre_quant_scale: bool = False
    exclude: tuple[str, ...] = ALWAYS_EXCLUDED
    packed: bool = False

    def of(self, module: str) -> CheckpointFormat:
        """The format of one module of the engine."""
        return replace(self, quant_algo=None) if self.is_excluded(module) else self

    def is_excluded(self, module: str) -> bool:
        """Whether a matrix keeps its numbers."""
        name = module.rpartition(".")[0] if self.quant_algo == ROWWISE else module
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)


def choose_format(source: QuantFormat, wanted: QuantFormat | None, is_mixture: bool) -> CheckpointFormat:
    """The format of a checkpoint of a folder in `source`; `wanted` is the recipe's, None for the folder's own.

    `exclude` is left to `exclude_patterns`. Raises UsageProblem for a format that TensorRT-LLM's engines have not, or
    that cannot be made of the folder.
    """
    algorithm = _choose_algorithm(source, wanted)
    kv_cache = source.kv_cache if wanted is None else wanted.kv_cache
    if kv_cache == "int8" and source.kv_cache != "int8":
        raise UsageProblem(
            "the folder has no scales of an INT8 KV cache", why="they are found by calibration", fix="calibrate first"
        )
    if algorithm not in ALGOS:
        raise UsageProblem(
            f"TensorRT-LLM's engine flow has no format for {algorithm}",
            why="its loader knows no such tensors",
            fix=f"choose one of {', '.join(ALGOS)}, or flow: pytorch",
        )
    if source.zero_points or source.reordered:
        raise UsageProblem(
            f"{algorithm} with {'zero points' if source.zero_points else 'reordered columns'} cannot be written",
            why="TensorRT-LLM takes these only in the layout of its kernels",
            fix="convert with the release's own convert_checkpoint.py (converter: release)",
        )
    group = source.group_size if source.algorithm != "none" or wanted is None else wanted.group_size
    algo = "W4A16" if algorithm == "int4_wo" and group == WHOLE_ROW else ALGOS[algorithm]
    if is_mixture and algo not in EXPERT_ALGOS:
        raise UsageProblem(
            f"TensorRT-LLM's mixture of experts does not take {algo}",
            why=f"its documents list {', '.join(map(str, EXPERT_ALGOS[1:]))} for Mixtral",
            fix="choose one of these, or algorithm: none",
        )
    return CheckpointFormat(
        quant_algo=algo,
        kv_cache=KV_ALGOS[kv_cache],
        group_size=NVFP4_GROUP if algo == "NVFP4" else group or DEFAULT_GROUP,
        pre_quant_scale=algorithm in ("int4_awq", "w4a8_awq"),
    )


def _choose_algorithm(source: QuantFormat, wanted: QuantFormat | None) -> str:
    if wanted is None or wanted.algorithm == source.algorithm:
        return source.algorithm
    if source.algorithm == "none":
        if wanted.algorithm in ROUNDED_HERE:
            return wanted.algorithm
        raise UsageProblem(
            f"the folder is not quantized, and {wanted.algorithm} is asked for",
            why="its scales are found by calibration",
            fix="calibrate first: the folder that ModelOpt exports is what is converted",
        )
    # ModelOpt calls all of these W4A16_AWQ, and a folder does not always tell them apart.
    if ALGOS.get(source.algorithm) == ALGOS.get(wanted.algorithm) == "W4A16_AWQ":
        return source.algorithm
    raise UsageProblem(
        f"the folder is quantized as {source.algorithm}, and {wanted.algorithm} is asked for",
        why="numbers of one format are not made of those of another",
        fix="convert a folder of that format, or ask for the format of this one",
    )
