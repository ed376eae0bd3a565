"""Who can write a checkpoint that trtllm-build reads: trtx itself, or the scripts of the release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trtx.backends.tensorrt_llm.argv_convert import make_convert_command
from trtx.backends.tensorrt_llm.argv_quantize import Calibration, make_quantize_command
from trtx.backends.tensorrt_llm.checkpoint.plan import plan_checkpoint
from trtx.backends.tensorrt_llm.from_recipe import make_checkpoint_spec
from trtx.backends.tensorrt_llm.spec import Converter
from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.backends.tensorrt_llm.refusals.base import Subject

# What convert_checkpoint.py makes of plain weights by itself; all else is quantized by quantize.py before.
BY_CONVERSION = ("none", "int8_wo", "int4_wo", "int4_gptq")
ANYWHERE = Path("/nowhere")


def trtx_problem(subject: Subject) -> str:
    """Why trtx cannot write the checkpoint of an engine; empty when it can, or while the model is not known."""
    if subject.shape is None:
        return ""
    try:
        plan_checkpoint(make_checkpoint_spec(subject, "trtx"))
    except UsageProblem as error:
        return f"{error.what} ({error.why.rstrip('.')})" if error.why else error.what
    return ""


def release_problem(subject: Subject) -> str:
    """Why the scripts of the release cannot write the checkpoint; empty when they can, or nobody knows the model."""
    if subject.shape is None:
        return ""
    spec = make_checkpoint_spec(subject, "release")
    calibration = Calibration(ANYWHERE, samples=1, max_length=1, batch_size=1, seed=0)
    try:
        if is_converted(subject):
            make_convert_command(spec, subject.release, checkpoint=ANYWHERE, output=ANYWHERE)
        else:
            make_quantize_command(spec, subject.release, calibration, model=ANYWHERE, output=ANYWHERE)
    except UsageProblem as error:
        return f"{error.what} ({error.why.rstrip('.')})" if error.why else error.what
    return ""


def is_plain(subject: Subject) -> bool:
    """Whether trtx converts the model as it is: trtllm-build itself rounds such weights, and once is enough."""
    return subject.variant.algorithm == "int8_wo" and subject.variant.kv_cache == "auto"


def is_converted(subject: Subject) -> bool:
    """Whether the release's convert_checkpoint.py writes the checkpoint, and not quantize.py."""
    return is_converted_format(subject.variant.algorithm, subject.variant.kv_cache)


def is_converted_format(algorithm: str, kv_cache: str) -> bool:
    """The same by the formats of a variant."""
    return algorithm in BY_CONVERSION and kv_cache == "auto"


def choose_converter(subject: Subject) -> Converter:
    """Who writes the checkpoint: what the recipe says, else trtx where it can, since that takes no GPU."""
    wanted = subject.engine.converter
    if wanted != "auto":
        return wanted
    return "release" if trtx_problem(subject) else "trtx"
