"""The command line of the release's examples/quantization/quantize.py, which calibrates with ModelOpt on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtx.backends.tensorrt_llm.commands import Command, CommandLine
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import CheckpointSpec
from trtx.backends.tensorrt_llm.support import FORMATS
from trtx.errors import UsageProblem

TOOL = "quantize.py"
# AWQ's formats calibrate on 32 rows at most: tensorrt_llm/quantization/quantize_by_modelopt.py:728-733 of 1.3.0rc3.
AWQ_SAMPLES = 32
LM_HEAD = "lm_head"
OTHERWISE = "write engine.converter: trtx, which quantizes with ModelOpt and writes the checkpoint itself"


@dataclass(frozen=True)
class Calibration:
    """How activations are observed. `data` is a folder whose split `train` has a column `text`."""

    data: Path
    samples: int
    max_length: int
    batch_size: int
    seed: int


def make_quantize_command(
    spec: CheckpointSpec, release: Release, calibration: Calibration, *, model: Path, output: Path
) -> Command:
    """quantize.py for a spec: a Hugging Face model into a TensorRT-LLM checkpoint.

    Raises UsageProblem for what this script cannot do.
    """
    _refuse(spec, release)
    algorithm, ranks = spec.quantization.algorithm, spec.ranks
    line = CommandLine(release, release.tool(TOOL), OTHERWISE)
    line.give("model_dir", str(model))
    line.give("output_dir", str(output))
    line.give("dtype", spec.dtype)
    line.give("qformat", FORMATS[algorithm].conversion)
    line.give("kv_cache_dtype", None if spec.quantization.kv_cache == "auto" else spec.quantization.kv_cache)
    line.give("awq_block_size", spec.quantization.columns_per_scale if "awq" in algorithm else None)
    if LM_HEAD not in spec.quantization.exclude:
        line.give("quantize_lm_head", True)
    line.give("calib_dataset", str(calibration.data))
    line.give("calib_size", count_samples(algorithm, calibration.samples))
    line.give("calib_max_seq_length", calibration.max_length)
    line.give("tokenizer_max_seq_length", calibration.max_length)
    line.give("batch_size", calibration.batch_size)
    line.give("seed", calibration.seed)
    line.give("tp_size", ranks.tensor)
    line.give("pp_size", ranks.pipeline)
    if ranks.context > 1:
        line.give("cp_size", ranks.context)
    else:
        line.pin("cp_size", 1)
    line.pin("calib_tp_size", 1)
    line.pin("calib_pp_size", 1)
    line.pin("device", "cuda")
    line.pin("device_map", "auto")
    return line.command()


def count_samples(algorithm: str, samples: int) -> int:
    """Rows that the script calibrates on, whatever it is told."""
    return min(samples, AWQ_SAMPLES) if "awq" in algorithm else samples


def _refuse(spec: CheckpointSpec, release: Release) -> None:
    where = f"quantize.py of TensorRT-LLM {release.version}"
    if FORMATS[spec.quantization.algorithm].conversion is None:
        raise UsageProblem(
            f"{where} has no format {spec.quantization.algorithm}", why="see its --qformat", fix=OTHERWISE
        )
    if spec.ranks.expert > 1:
        raise UsageProblem(
            f"{where} does not divide experts over ranks",
            why="its checkpoints have expert parallelism 1",
            fix=f"{OTHERWISE}, or leave parallelism.expert out",
        )
    strange = [pattern for pattern in spec.quantization.exclude if pattern != LM_HEAD]
    if strange:
        raise UsageProblem(
            f"{where} quantizes every layer but lm_head",
            why=f"it has no option to exclude {', '.join(strange)}",
            fix=OTHERWISE,
        )
