"""Quantization algorithms as data: what each one stores and needs. Imports no torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Algorithm = Literal[
    "none",
    "fp8",
    "fp8_dynamic",
    "fp8_block_wo",
    "int8_sq",
    "int8_wo",
    "int8_gptq",
    "int4_wo",
    "int4_awq",
    "int4_gptq",
    "w4a8_awq",
    "nvfp4",
    "nvfp4_awq",
    "mxfp4",
    "mxfp8",
]
KvCacheFormat = Literal["auto", "fp8", "int8"]

# How a checkpoint lays out its quantized tensors (quant/unpack.py): ModelOpt's and compressed-tensors' exports;
# AutoAWQ's "gemm"; GPTQ with zero points stored one too small (its first checkpoint format) and with true ones.
Packing = Literal["plain", "awq", "gptq", "gptq_v2"]

# Group size of formats whose rows have one scale each, as GPTQ's own configuration writes it.
WHOLE_ROW = -1


class QuantFormat(BaseModel):
    """The number formats of an engine; with ModelConfig this fixes every shape and dtype of the program.

    `group_size` is columns per scale where it is not the algorithm's own, WHOLE_ROW for one scale per row.
    `zero_points` says that groups have zero points, `reordered` that a group's columns are scattered over the row
    (GPTQ's act-order). `packing` is about the checkpoint alone: programs and weights do not know it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Algorithm = "none"
    kv_cache: KvCacheFormat = "auto"
    exclude: tuple[str, ...] = ("lm_head",)
    group_size: int | None = None
    zero_points: bool = False
    reordered: bool = False
    packing: Packing = Field(default="plain", exclude=True)

    @property
    def columns_per_scale(self) -> int | None:
        """Columns that share one scale, for group-wise formats; WHOLE_ROW for all of a row."""
        return self.group_size or ALGORITHMS[self.algorithm].group_size


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

    `hf_quant_algo` is ModelOpt's name in hf_quant_config.json; `modelopt_config` the name in
    modelopt.torch.quantization, None for formats that are read only; `needs_calibration` whether activations must be
    observed; `weight_bits`/`activation_bits` are bits per number; `dequantized` whether the engine stores the weights
    in its own dtype, because no kernel reads the format's. The tolerances are relative and bound the check of every
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
    dequantized: bool = False


# Measured with the engine's module on the demo model, and in brackets on a random one of two layers with transformers'
# usual initialization; x/y are float32/bfloat16.
#
# | format | logits from the dequantized weights' | from the unquantized model's | perplexity from ModelOpt's |
# |---|---|---|---|
# | fp8 | 0.012 (0.055) | 0.016 (0.076) | 8e-6/1e-4 (2e-5/4e-4) |
# | fp8_dynamic | 0.011 (0.046) | 0.015 (0.071) | 8e-6/8e-4 (5e-5/5e-5) |
# | fp8_block_wo | 0/0.003 (0/0.007) | 0.010 (0.054) | 7e-8/4e-5 (6e-6/1e-4) |
# | int8_sq | 0.015 (0.019) | 0.015 (0.025) | 7e-5/9e-5 |
# | int8_wo | 0/0.003 | 0.003 (0.032) | below 1e-5 in float32 |
# | int4_wo, int4_awq | 0/0.003 | 0.046 (0.26) | below 1e-5 in float32 |
# | int4_gptq | 0/0.003 (0/0.007) | 0.030 (0.20) | 2e-8/1e-4 (1e-7/9e-5) |
# | w4a8_awq | 0.012 (0.046) | 0.046 (0.28) | 6e-4/4e-4 (2e-3/1e-3): ModelOpt rounds its weights once more |
# | nvfp4, nvfp4_awq | 0.042 (0.16) | 0.055 (0.26) | 4e-8/3e-4 (5e-8/2e-3) |
# | mxfp4 | 0.061 (0.20) | 0.074 (0.32) | 2e-7/6e-3 (3e-7/1e-3): noise, see below |
# | mxfp8 | 0.012 (0.045) | 0.015 (0.072) | 6e-8/2e-3 (1e-7/3e-4) |
#
# On random models of eight architectures whose norms are random, too, int8_sq was 0.03 to 0.145 away from the
# dequantized weights' logits, with a perplexity within 3e-4 of ModelOpt's: one scale for all inputs is coarse there.
# Rounding to mxfp4 makes much of little: a number that is largest in its block moves all of the block when it crosses
# a power of two. Noise of a bfloat16's size before it, in a float32 model, moved the perplexity of 4,608 tokens by up
# to 0.4 % and that of 16,384, of which few make most of the difference, by up to 0.5 %. Two bfloat16 programs that add
# up in another order are as far apart; benchmarks/runtime.py compares them on more text.
#
# int8_gptq, which ModelOpt has not, is bounded as int8_wo: it has more scales.
ALGORITHMS: dict[str, AlgorithmFacts] = {
    "none": AlgorithmFacts(None, None, False, 16, 16, None, 0.0, 0.0, 0.0),
    "fp8": AlgorithmFacts("FP8", "FP8_DEFAULT_CFG", True, 8, 8, None, 0.08, 0.12, 0.001),
    "fp8_dynamic": AlgorithmFacts(
        "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PER_CHANNEL_PER_TOKEN_CFG", False, 8, 8, None, 0.08, 0.12, 0.001
    ),
    "fp8_block_wo": AlgorithmFacts(
        "fp8_pb_wo", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", False, 8, 16, None, 0.0, 0.1, 0.0005, dequantized=True
    ),
    "int8_sq": AlgorithmFacts("W8A8_SQ_PER_CHANNEL", "INT8_SMOOTHQUANT_CFG", True, 8, 8, None, 0.2, 0.22, 0.001),
    "int8_wo": AlgorithmFacts("W8A16", "INT8_WEIGHT_ONLY_CFG", False, 8, 16, None, 0.0, 0.06, 0.0005),
    "int8_gptq": AlgorithmFacts(None, None, False, 8, 16, 128, 0.0, 0.06, 0.0005, dequantized=True),
    "int4_wo": AlgorithmFacts("W4A16_AWQ", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", False, 4, 16, 128, 0.0, 0.35, 0.0005),
    "int4_awq": AlgorithmFacts("W4A16_AWQ", "INT4_AWQ_CFG", True, 4, 16, 128, 0.0, 0.35, 0.0005),
    "int4_gptq": AlgorithmFacts("W4A16_AWQ", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", True, 4, 16, 128, 0.0, 0.35, 0.0005),
    "w4a8_awq": AlgorithmFacts("W4A8_AWQ", "W4A8_AWQ_BETA_CFG", True, 4, 8, 128, 0.08, 0.4, 0.003),
    "nvfp4": AlgorithmFacts("NVFP4", "NVFP4_DEFAULT_CFG", True, 4, 4, 16, 0.25, 0.4, 0.001, dequantized=True),
    "nvfp4_awq": AlgorithmFacts("NVFP4_AWQ", "NVFP4_AWQ_LITE_CFG", True, 4, 4, 16, 0.25, 0.4, 0.001, dequantized=True),
    "mxfp4": AlgorithmFacts("mxfp4", "MXFP4_DEFAULT_CFG", False, 4, 4, 32, 0.3, 0.42, 0.006, dequantized=True),
    "mxfp8": AlgorithmFacts("MXFP8", "MXFP8_DEFAULT_CFG", False, 8, 8, 32, 0.08, 0.12, 0.001, dequantized=True),
}

# Rows and columns of a block of fp8_block_wo.
FP8_BLOCK = 128

# Algorithms that differ in how numbers are found and not in what a program does with them: an engine of one serves
# weights of another, when their tensors are alike.
SAME_PROGRAM = {"int4_awq": "int4_wo", "int4_gptq": "int4_wo", "int8_gptq": "none", "fp8_block_wo": "none"}

# Formats that are read from checkpoints and that nothing here calibrates.
READ_ONLY = ("int8_gptq",)

# Formats that experts of a mixture cannot have, and why.
NOT_FOR_EXPERTS: dict[str, str] = {
    "int8_sq": "the engine multiplies activations of experts as floats",
    "w4a8_awq": "ModelOpt cannot set the scales of experts that are kept in one tensor",
    "nvfp4_awq": "ModelOpt searches no scales for experts and exports a mixture of formats",
    "fp8_block_wo": "ModelOpt exports experts under other names than the model's own",
}
# Formats that they can have, but not by ModelOpt.
NOT_CALIBRATED_FOR_EXPERTS: dict[str, str] = {
    "int4_gptq": "ModelOpt knows GPTQ for linears only, and experts are kept in one tensor",
}

# Number formats that no CPU of the catalogue computes in: numbers are rounded through them and products are taken in
# the engine's dtype.
SIMULATED_ON_CPU = (
    "fp8",
    "fp8_dynamic",
    "fp8_block_wo",
    "w4a8_awq",
    "nvfp4",
    "nvfp4_awq",
    "mxfp4",
    "mxfp8",
)

# What the engine's own number format and a KV cache of 8 bits add to the tolerances of logits and of perplexity.
# Measured on the same two models: float32 3e-7, bfloat16 0.003 (0.007); perplexity in bfloat16 0.0003; with an fp8 KV
# cache 0.003 (0.0001) and 2e-5, with an int8 one 0.003 (0.010) and 1e-7.
DTYPE_LOGIT_TOLERANCE = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}
DTYPE_PERPLEXITY_TOLERANCE = {"float32": 1e-4, "float16": 0.001, "bfloat16": 0.003}
KV_CACHE_LOGIT_TOLERANCE = {"auto": 0.0, "fp8": 0.03, "int8": 0.03}
KV_CACHE_PERPLEXITY_TOLERANCE = {"auto": 0.0, "fp8": 0.001, "int8": 0.001}

# How much farther logits of a mixture of experts may be away: rounding sends a token whose experts are nearly equal to
# another one. Measured on random mixtures of two layers, in units of the bounds above: up to 1.4 from the dequantized
# weights' logits (fp8, float32), 0.93 in bfloat16 without quantization, 1.1 from the unquantized model's (mxfp4).
MIXTURE_LOGIT_FACTOR = 2
