"""A Hugging Face checkpoint into TensorRT-LLM's, by trtx's own writer or by the release's convert_checkpoint.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.argv_convert import make_convert_command
from trtx.backends.tensorrt_llm.checkpoint_files import describe_checkpoint
from trtx.backends.tensorrt_llm.machine import check_container, find_program, read_installed, tool_environment
from trtx.backends.tensorrt_llm.probes import load_release
from trtx.backends.tensorrt_llm.run_calibrate import lay_out_rows
from trtx.backends.tensorrt_llm.run_tool import run_tool, settle_doubts
from trtx.backends.tensorrt_llm.spec import CheckpointSpec
from trtx.backends.tensorrt_llm.step import Step
from trtx.backends.tokenizer_files import copy_tokenizer
from trtx.models.weights_config import TOKENIZER_FOLDER

# Imports torch.
WRITER = "trtx.backends.tensorrt_llm.checkpoint.write"


def convert(spec: CheckpointSpec, step: Step) -> dict[str, Any]:
    """Write config.json, rankN.safetensors and tokenizer/. Input: checkpoint, and data for formats of the scripts.

    Raises UsageProblem for what neither of them can write, EnvironmentProblem when the release's script is asked for
    outside its container, StepFailed when the script fails.
    """
    source = step.inputs["checkpoint"]
    doubts: tuple[str, ...] = ()
    if spec.converter == "trtx":
        importlib.import_module(WRITER).write_checkpoint(source, step.output, spec, step.say, step.progress)
    else:
        doubts = _run_script(spec, step, source)
    tokenizer = step.output / TOKENIZER_FOLDER
    if not tokenizer.is_dir():
        copy_tokenizer(source, tokenizer)
    summary = describe_checkpoint(spec, step.output)
    step.say(f"{summary['ranks']} rank file(s), {summary['bytes']:,} bytes, format {summary['quant_algo']}")
    return {**summary, "doubts": list(doubts)}


def _run_script(spec: CheckpointSpec, step: Step, source: Path) -> tuple[str, ...]:
    release = load_release(spec, step.environ)
    image = spec.container.image if spec.container else "of the release"
    check_container(release, read_installed(step.environ), image)
    data = lay_out_rows(step) if "data" in step.inputs else None
    command = make_convert_command(spec, release, checkpoint=source, output=step.output, data=data)
    program, environment = find_program(release, command.tool, step.environ), tool_environment(step.environ)
    command, doubts = settle_doubts(command, program, environment, step.say)
    run_tool(command, program, folder=step.work, environment=environment, say=step.say)
    return doubts
