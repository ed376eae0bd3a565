"""trtllm-build, and what it made of what it was told; in the PyTorch flow, the options file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.argv_build import TOOL, make_build_command
from trtx.backends.tensorrt_llm.card import make_card, write_card
from trtx.backends.tensorrt_llm.drift import CONFIG_NAME, Drift, find_drift, read_engine_config
from trtx.backends.tensorrt_llm.llm_options import FILE_NAME, make_options
from trtx.backends.tensorrt_llm.machine import (
    check_container,
    check_gpus,
    find_program,
    read_installed,
    tool_environment,
)
from trtx.backends.tensorrt_llm.probes import load_release
from trtx.backends.tensorrt_llm.run_tool import run_tool, settle_doubts
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.step import Step
from trtx.errors import StepFailed, UsageProblem, VerificationFailed
from trtx.files import link_or_copy, read_json, walk_files, write_text
from trtx.models.weights_config import TOKENIZER_FOLDER

TIMING_CACHE = "timing.cache"
# Modes whose heads are part of the model → its name in MODEL_MAP.
HEADS = {"medusa": "MedusaForCausalLM", "eagle": "EagleForCausalLM"}
# Of these no engine may differ: it would be another engine.
IDENTITY = ("version", "pretrained_config.")


def build(spec: TrtllmSpec, step: Step) -> dict[str, Any]:
    """Write the engine folder, or in the PyTorch flow llm_options.yaml; with trtllm.json. Input: checkpoint.

    Raises EnvironmentProblem when this is not the release's container or has other GPUs, StepFailed when trtllm-build
    fails, VerificationFailed when its engine is of another model, release or parallelism.
    """
    return _build_engine(spec, step) if spec.flow == "engine" else _write_options(spec, step)


def _write_options(spec: TrtllmSpec, step: Step) -> dict[str, Any]:
    options = make_options(spec, load_release(spec, step.environ))
    write_text(step.output / FILE_NAME, options.to_yaml())
    write_card(step.output, make_card(spec, None, doubts=options.doubts))
    for doubt in options.doubts:
        step.say(f"doubt: {doubt}")
    return {"flow": spec.flow, "keys": len(options.values), "doubts": list(options.doubts)}


def _build_engine(spec: TrtllmSpec, step: Step) -> dict[str, Any]:
    release, installed = load_release(spec, step.environ), read_installed(step.environ)
    check_container(release, installed, spec.container.image)
    # Ranks are built one after another where there are fewer GPUs: commands/build.py:384 of 1.3.0rc3, rank % GPUs.
    check_gpus(installed, spec.device.sm, 1)
    checkpoint = step.inputs["checkpoint"]
    _check_heads(spec, checkpoint)
    command = make_build_command(
        spec, release, checkpoint=checkpoint, output=step.output, timing_cache=step.work / TIMING_CACHE
    )
    program, environment = find_program(release, TOOL, step.environ), tool_environment(step.environ)
    command, doubts = settle_doubts(command, program, environment, step.say)
    run_tool(command, program, folder=step.work, environment=environment, say=step.say)
    drift = _check_engine(spec, step)
    _copy_tokenizer(checkpoint / TOKENIZER_FOLDER, step.output / TOKENIZER_FOLDER)
    write_card(step.output, make_card(spec, installed, tuple(row.to_json() for row in drift), doubts))
    sizes = [path.stat().st_size for path in walk_files(step.output)]
    return {
        "flow": spec.flow,
        "tensorrt": installed.tensorrt,
        "gpu": installed.gpus[0].name,
        "bytes": sum(sizes),
        "drift": [row.to_json() for row in drift],
        "doubts": list(doubts),
    }


def _check_heads(spec: TrtllmSpec, checkpoint: Path) -> None:
    """Heads that guess are tensors of the checkpoint. Raises UsageProblem where they are asked for and not there."""
    mode = spec.speculation.mode if spec.speculation else None
    wanted = HEADS.get(mode or "")
    found = read_json(checkpoint / CONFIG_NAME).get("architecture")
    if wanted is not None and found != wanted:
        raise UsageProblem(
            f"the checkpoint has no heads for speculative decoding by {mode}",
            why=f"its architecture is {found}, and trtllm-build needs {wanted}",
            fix="use draft-target or lookahead, or engine.flow: pytorch with eagle3",
        )


def _check_engine(spec: TrtllmSpec, step: Step) -> tuple[Drift, ...]:
    """What the builder changed. Raises StepFailed for an engine that is not whole."""
    missing = [
        f"rank{rank}.engine"
        for rank in range(spec.ranks.world_size)
        if not (step.output / f"rank{rank}.engine").is_file()
    ]
    if missing:
        raise StepFailed(f"trtllm-build left no {missing[0]}", why="it ended without an error", fix="read its log")
    drift = find_drift(spec, load_release(spec, step.environ), read_engine_config(step.output))
    wrong = [row for row in drift if row.field.startswith(IDENTITY)]
    if wrong:
        raise VerificationFailed(
            f"the engine is not the one that was asked for: {wrong[0]}",
            why="\n       ".join(map(str, wrong[1:])),
            fix="convert the checkpoint again, and build in the release's own container",
        )
    for row in drift:
        step.say(f"drift: {row}")
    return drift


def _copy_tokenizer(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise VerificationFailed(
            "the checkpoint has no tokenizer", why=f"{source} is missing", fix="convert it again: trtx puts it there"
        )
    for path in walk_files(source):
        link_or_copy(path, target / path.relative_to(source))
