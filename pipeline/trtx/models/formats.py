"""Quantization algorithms as data: what each one stores and needs. Imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Algorithm = Literal["none", "fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq"]
KvCacheFormat = Literal["auto", "fp8"]


class QuantFormat(BaseModel):
    """The number formats of an engine; with ModelConfig this fixes every shape and dtype of the program."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Algorithm = "none"
    kv_cache: KvCacheFormat = "auto"
    exclude: tuple[str, ...] = ("lm_head",)

    @property
    def group_size(self) -> int | None:
        """Columns that share one scale, for group-wise formats."""
        return ALGORITHMS[self.algorithm].group_size


def is_excluded(module: str, patterns: Iterable[str]) -> bool:
    """Whether a module such as `model.layers.0.mlp.down_proj` keeps its original number format.

    A pattern is a shell glob. It matches the whole dotted name, any trailing part of it (`down_proj`,
    `mlp.*`), or the name of a module around it (`model.layers.0`); hf_quant_config.json uses the first and third form.
    """
    parts = module.split(".")
    names = [".".join(parts[start:]) for start in range(len(parts))]
    names += [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


@dataclass(frozen=True)
class AlgorithmFacts:
    """Facts of one algorithm, used by plan-time checks, calibration and conversion.

    `hf_quant_algo` is the name in hf_quant_config.json; `modelopt_config` the name in
    modelopt.torch.quantization; `needs_calibration` whether activations must be observed;
    `weight_bits`/`activation_bits` are bits per number. The tolerances are relative and bound the check of every
    engine (backends/inductor/check.py): `rounding_tolerance` the distance that rounding activations may make,
    `logit_tolerance` the distance of the logits from the unquantized model's, `perplexity_tolerance` the distance
    of the perplexity from the figure that ModelOpt itself measured. Distances of logits are L2 norms.
    """

    hf_quant_algo: str | None
    modelopt_config: str | None
    needs_calibration: bool
    weight_bits: int
    activation_bits: int
    group_size: int | None
    rounding_tolerance: float
    logit_tolerance: float
    perplexity_tolerance: float


# Measured in float32 on the demo model, and in brackets on a random model of two layers with transformers' usual
# initialization: logits from the unquantized model's fp8 0.016 (0.076), int8_sq 0.015 (0.025), int8_wo 0.003 (0.032),
# int4 0.046 (0.26); from transformers' on the dequantized weights fp8 0.012 (0.055 in bfloat16), int8_sq 0.015 (0.019),
# and nothing but float32 rounding for the weight-only formats; perplexity from ModelOpt's below 1e-5 in all of them.
ALGORITHMS: dict[str, AlgorithmFacts] = {
    "none": AlgorithmFacts(None, None, False, 16, 16, None, 0.0, 0.0, 0.0),
    "fp8": AlgorithmFacts("FP8", "FP8_DEFAULT_CFG", True, 8, 8, None, 0.08, 0.12, 0.001),
    "int8_sq": AlgorithmFacts("W8A8_SQ_PER_CHANNEL", "INT8_SMOOTHQUANT_CFG", True, 8, 8, None, 0.08, 0.1, 0.001),
    "int8_wo": AlgorithmFacts("W8A16", "INT8_WEIGHT_ONLY_CFG", False, 8, 16, None, 0.0, 0.06, 0.0005),
    "int4_wo": AlgorithmFacts("W4A16_AWQ", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", False, 4, 16, 128, 0.0, 0.35, 0.0005),
    "int4_awq": AlgorithmFacts("W4A16_AWQ", "INT4_AWQ_CFG", True, 4, 16, 128, 0.0, 0.35, 0.0005),
}

# What the engine's own number format and an fp8 KV cache add to the tolerances of logits and of perplexity. Measured
# on the same two models: float32 3e-7, bfloat16 0.003 (0.007); perplexity in bfloat16 0.0003; with an fp8 KV cache
# 0.003 (0.0001) and 2e-5.
DTYPE_LOGIT_TOLERANCE = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}
DTYPE_PERPLEXITY_TOLERANCE = {"float32": 1e-4, "float16": 0.001, "bfloat16": 0.003}
KV_CACHE_LOGIT_TOLERANCE = {"auto": 0.0, "fp8": 0.03}
KV_CACHE_PERPLEXITY_TOLERANCE = {"auto": 0.0, "fp8": 0.001}

# Algorithms of the recipe language that this version cannot run yet.
NOT_YET = ("w4a8_awq", "int4_gptq", "nvfp4", "mxfp4")
