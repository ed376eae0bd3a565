"""Every command line and file that the steps of an engine will have, made when it is planned, with names for folders.

What a release refuses is so found before anything runs, and two releases of one recipe are compared word by word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtx.backends.tensorrt_llm.argv_bench import BenchFiles, BenchLoad, make_bench_command
from trtx.backends.tensorrt_llm.argv_build import make_build_command
from trtx.backends.tensorrt_llm.argv_convert import make_convert_command
from trtx.backends.tensorrt_llm.argv_quantize import Calibration, make_quantize_command
from trtx.backends.tensorrt_llm.argv_serve import make_serve_command, takes_options
from trtx.backends.tensorrt_llm.commands import Command
from trtx.backends.tensorrt_llm.convertible import is_converted_format
from trtx.backends.tensorrt_llm.llm_options import make_options
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec

MODEL, DATA, CHECKPOINT, ENGINE = Path("MODEL"), Path("DATA"), Path("CHECKPOINT"), Path("ENGINE")
OPTIONS, WORK = Path("OPTIONS"), Path("WORK")


@dataclass(frozen=True)
class Rehearsed:
    """What one stage says to its tool; `doubts` are what of it is not established for the release."""

    stage: str
    tool: str
    words: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def rehearse(
    spec: TrtllmSpec, release: Release, calibration: Calibration | None = None, *, measures: bool = True
) -> Iterator[Rehearsed]:
    """The commands of a spec's steps in their order. `calibration` is how quantize.py observes activations.

    Raises UsageProblem for what the release would refuse.
    """
    if spec.flow == "engine":
        if spec.converter == "release":
            yield _make_checkpoint(spec, release, calibration)
        build = make_build_command(
            spec, release, checkpoint=CHECKPOINT, output=ENGINE, timing_cache=WORK / "timing.cache"
        )
        yield _tell("build", build)
    else:
        options = make_options(spec, release)
        yield Rehearsed("build", "options file", tuple(options.to_yaml().splitlines()), options.doubts)
    if measures:
        files = BenchFiles(MODEL, DATA, WORK, WORK / "report.json", ENGINE if spec.flow == "engine" else None, OPTIONS)
        yield _tell("benchmark", make_bench_command(spec, release, files, BenchLoad(1, 1, 0)))
    if "trtllm-serve" in release.tools or "trtllm-serve serve" in release.tools:
        yield _serve(spec, release)


def _make_checkpoint(spec: TrtllmSpec, release: Release, calibration: Calibration | None) -> Rehearsed:
    if is_converted_format(spec.quantization.algorithm, spec.quantization.kv_cache):
        convert = make_convert_command(spec.checkpoint, release, checkpoint=MODEL, output=CHECKPOINT)
        return _tell("convert", convert)
    how = calibration or Calibration(DATA, samples=1, max_length=1, batch_size=1, seed=0)
    quantize = make_quantize_command(spec.checkpoint, release, how, model=MODEL, output=CHECKPOINT)
    return _tell("calibrate", quantize)


def _serve(spec: TrtllmSpec, release: Release) -> Rehearsed:
    served = ENGINE if spec.flow == "engine" else CHECKPOINT
    options = str(OPTIONS) if takes_options(release) else None
    command = make_serve_command(
        spec, release, model=str(served), tokenizer=str(served), options=options, host="localhost", port=8000
    )
    return _tell("package", command)


def _tell(stage: str, command: Command) -> Rehearsed:
    return Rehearsed(stage, command.tool, command.words, command.doubts)
