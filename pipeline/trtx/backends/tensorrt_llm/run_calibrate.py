"""quantize.py of the release: a Hugging Face model into a quantized TensorRT-LLM checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.argv_quantize import TOOL, Calibration, make_quantize_command
from trtx.backends.tensorrt_llm.checkpoint_files import describe_checkpoint
from trtx.backends.tensorrt_llm.machine import check_container, find_program, read_installed, tool_environment
from trtx.backends.tensorrt_llm.probes import load_release
from trtx.backends.tensorrt_llm.run_tool import run_tool, settle_doubts
from trtx.backends.tensorrt_llm.spec import CheckpointSpec
from trtx.backends.tensorrt_llm.step import Step
from trtx.backends.tokenizer_files import copy_tokenizer
from trtx.errors import EnvironmentProblem
from trtx.files import read_file, write_bytes
from trtx.models.weights_config import TOKENIZER_FOLDER

# The dataset step's rows {"text": …}, and the name that makes them the split `train` of a folder.
ROWS_NAME, TRAIN_NAME = "calibration.jsonl", "train.jsonl"


def calibrate(
    spec: CheckpointSpec, step: Step, *, samples: int, max_length: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """Write config.json, rankN.safetensors and tokenizer/. Inputs: model, and data where activations are observed.

    Raises EnvironmentProblem when this is not the release's container or has no GPU, StepFailed when the script fails.
    """
    release, installed = load_release(spec, step.environ), read_installed(step.environ)
    check_container(release, installed, spec.container.image if spec.container else "of the release")
    if not installed.gpus:
        # quantize_by_modelopt.py:693 of 1.3.0rc3.
        raise EnvironmentProblem(
            "quantize.py needs a GPU",
            why=installed.host.gpus_problem or "none is visible here",
            fix="run the step on a GPU, or write engine.converter: trtx",
        )
    calibration = Calibration(lay_out_rows(step), samples, max_length, batch_size, seed)
    command = make_quantize_command(spec, release, calibration, model=step.inputs["model"], output=step.output)
    program, environment = find_program(release, TOOL, step.environ), tool_environment(step.environ)
    command, doubts = settle_doubts(command, program, environment, step.say)
    run_tool(command, program, folder=step.work, environment=environment, say=step.say)
    copy_tokenizer(step.inputs["model"], step.output / TOKENIZER_FOLDER)
    return {**describe_checkpoint(spec, step.output), "doubts": list(doubts)}


def lay_out_rows(step: Step) -> Path:
    """A folder that `datasets` reads as a split `train` with a column `text`; empty without the input."""
    folder = step.scratch("calibration")
    if "data" in step.inputs:
        write_bytes(folder / TRAIN_NAME, read_file(step.inputs["data"] / ROWS_NAME))
    return folder
