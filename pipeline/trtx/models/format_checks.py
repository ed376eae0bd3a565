"""Which number formats a model of some kind can have. Imports no torch: the plan asks."""

from __future__ import annotations

from trtx.errors import UsageProblem
from trtx.models.config import ModelConfig, load_architecture
from trtx.models.formats import NOT_CALIBRATED_FOR_EXPERTS, NOT_FOR_EXPERTS, QuantFormat


def check_format(config: ModelConfig, quantization: QuantFormat) -> None:
    """Raise UsageProblem for a format that a model of this kind cannot be quantized in."""
    algorithm, is_own = quantization.algorithm, quantization.packing == "plain"
    if is_own and algorithm != "none" and load_architecture(config.architecture).transposed:
        raise _refuse(config, algorithm, "ModelOpt does not quantize matrices that are stored as [inputs, outputs]")
    if not config.num_experts:
        return
    if algorithm in NOT_FOR_EXPERTS:
        raise _refuse(config, algorithm, NOT_FOR_EXPERTS[algorithm])
    if quantization.reordered:
        raise _refuse(config, algorithm, "the engine does not sort the input columns of experts (desc_act)")


def check_cut(quantization: QuantFormat, tensor: int) -> None:
    """Raise UsageProblem for a format whose matrices cannot be cut into tensor-parallel ranks."""
    if tensor > 1 and quantization.reordered:
        raise UsageProblem(
            f"{quantization.algorithm} with scattered groups cannot be cut into {tensor} tensor-parallel ranks",
            why="columns that share a scale lie all over the row (desc_act), so a rank's are of no whole groups",
            fix="set tensor parallelism to 1, or take a checkpoint without desc_act",
        )


def check_calibration(config: ModelConfig, quantization: QuantFormat) -> None:
    """Raise UsageProblem for a format that engines can have and that ModelOpt cannot make for a model of this kind."""
    if config.num_experts and quantization.algorithm in NOT_CALIBRATED_FOR_EXPERTS:
        raise _refuse(config, quantization.algorithm, NOT_CALIBRATED_FOR_EXPERTS[quantization.algorithm])


def _refuse(config: ModelConfig, algorithm: str, why: str) -> UsageProblem:
    fix = "use int8_wo, int4_wo, int4_awq or fp8" if config.num_experts else "use `algorithm: none`"
    return UsageProblem(f"{config.architecture} cannot be quantized with {algorithm} yet", why=why, fix=fix)
