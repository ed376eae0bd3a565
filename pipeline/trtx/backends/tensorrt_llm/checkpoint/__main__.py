"""Writes or checks a TensorRT-LLM checkpoint by hand.

python -m trtx.backends.tensorrt_llm.checkpoint FOLDER OUT --tensor 2 --pipeline 2
python -m trtx.backends.tensorrt_llm.checkpoint --check OUT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.formats import ROUNDED_HERE
from trtx.backends.tensorrt_llm.releases import known_releases
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import TrtxError, VerificationFailed
from trtx.models.config import DType
from trtx.models.formats import WHOLE_ROW, QuantFormat

DEFAULT_RELEASE = "1.2.1"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; messages go to stderr."""
    arguments = _make_parser().parse_args(argv)
    try:
        if arguments.check:
            return _check(arguments.check, arguments.release)
        return _write(arguments)
    except TrtxError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trtx.backends.tensorrt_llm.checkpoint",
        description="Write a TensorRT-LLM checkpoint, which trtllm-build reads, of a Hugging Face folder or of what "
        "ModelOpt exports (the calibrate stage writes that). No GPU and no TensorRT-LLM are needed.",
        epilog="Llama, Mistral, Mixtral and Qwen2; FP16, BF16, INT8 and INT4 weight-only, INT8 SmoothQuant, INT4 AWQ, "
        "W4A8 AWQ, FP8 and NVFP4. Formats that are calibrated are taken as the folder has them.",
    )
    parser.add_argument("source", type=Path, nargs="?", help="folder with config.json and safetensors")
    parser.add_argument("output", type=Path, nargs="?", help="new folder for config.json and rankN.safetensors")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor parallelism")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline parallelism")
    parser.add_argument("--context", type=int, default=1, metavar="N", help="context parallelism; ranks share files")
    parser.add_argument("--expert", type=int, default=1, metavar="N", help="groups of ranks with different experts")
    parser.add_argument("--dtype", choices=get_args(DType), default="bfloat16", help="of what is not quantized")
    parser.add_argument(
        "--weight-only", choices=ROUNDED_HERE, help="quantize a plain folder: int8_wo, or int4_wo in groups of 128"
    )
    parser.add_argument("--whole-rows", action="store_true", help="with int4_wo: one scale for each row (W4A16)")
    parser.add_argument("--release", choices=known_releases(), default=DEFAULT_RELEASE, help="who shall read it")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only say what trtllm-build would refuse there")
    return parser


def _check(folder: Path, release: str) -> int:
    problems = check_checkpoint(folder, release)
    for problem in problems:
        print(f"{problem.severity}: {problem.file}: {problem.what}{f' ({problem.why})' if problem.why else ''}")
    return VerificationFailed.exit_code if any(problem.severity == "error" for problem in problems) else 0


def _write(arguments: argparse.Namespace) -> int:
    if arguments.source is None or arguments.output is None:
        _make_parser().error("give the folder to convert and the folder to write, or --check FOLDER")
    from trtx.backends.tensorrt_llm.checkpoint.write import convert_folder  # importing torch takes a second

    wanted = None
    if arguments.weight_only:
        group = WHOLE_ROW if arguments.whole_rows else None
        wanted = QuantFormat(algorithm=arguments.weight_only, group_size=group)
    ranks = Ranks(
        tensor=arguments.tensor, pipeline=arguments.pipeline, context=arguments.context, expert=arguments.expert
    )
    convert_folder(
        arguments.source,
        arguments.output,
        release=arguments.release,
        ranks=ranks,
        dtype=arguments.dtype,
        quantization=wanted,
        say=lambda text: print(text, file=sys.stderr),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
