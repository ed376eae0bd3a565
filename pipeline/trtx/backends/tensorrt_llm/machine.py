"""The container that a step is in: the release that is installed, its TensorRT, and the GPUs, as they are found."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.backends.tensorrt_llm.releases import SCRIPT_ROOT, Release
from trtx.errors import EnvironmentProblem
from trtx.hardware.host import Host, HostGpu, read_host, visible_gpus
from trtx.hardware.versions import installed_version

# Where the repository's folders are when they are not where the release's image has them.
ROOT_VARIABLE = "TRTX_TRTLLM_ROOT"
# Distributions of the library, and of TensorRT by CUDA release; the plain one is a stub for the newest.
LIBRARY = ("tensorrt_llm", "tensorrt-llm")
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


@dataclass(frozen=True)
class Installed:
    """What is installed and visible here. `gpus` are those that CUDA_VISIBLE_DEVICES leaves."""

    library: str | None
    tensorrt: str | None
    gpus: tuple[HostGpu, ...]
    host: Host

    @property
    def sm(self) -> int | None:
        """The compute capability of the GPUs, as 90; None without any, or with different ones."""
        found = {int(gpu.arch.removeprefix("sm_")) for gpu in self.gpus}
        return found.pop() if len(found) == 1 else None


def read_installed(environ: Mapping[str, str]) -> Installed:
    """Look at this container. Raises EnvironmentProblem for CUDA_VISIBLE_DEVICES that name no GPU."""
    host = read_host()
    gpus = visible_gpus(host, environ) if host.gpus else ()
    return Installed(_first(LIBRARY), _first(TENSORRT), gpus, host)


def check_container(release: Release, installed: Installed, image: str) -> None:
    """Raise EnvironmentProblem unless the installed library is the release that the step was planned for."""
    if installed.library is None:
        raise EnvironmentProblem(
            f"TensorRT-LLM {release.version} is not installed here",
            why=f"this step runs in the container {image}, and {sys.executable} has no tensorrt_llm",
            fix="name the container in the runner: runners.NAME.container, and the Python that has tensorrt_llm",
        )
    if installed.library.partition("+")[0] != release.version:
        raise EnvironmentProblem(
            f"the step was planned for TensorRT-LLM {release.version}, and {installed.library} is installed here",
            why="engines, checkpoints and command lines are of one release",
            fix=f"run it in {image}, or write engine.release: {installed.library}",
        )


def check_gpus(installed: Installed, sm: int, count: int) -> None:
    """Raise EnvironmentProblem unless `count` GPUs of a compute capability are visible.

    The builder itself looks at the GPU that is there, so that an engine for another one is found when it is loaded.
    """
    wanted = f"{count} GPU{'s' * (count > 1)} with compute capability {sm / 10:.1f}"
    if installed.host.gpus_problem:
        raise EnvironmentProblem(f"the step needs {wanted}", why=installed.host.gpus_problem)
    others = sorted({gpu.name for gpu in installed.gpus if gpu.arch != f"sm_{sm}"})
    if others:
        raise EnvironmentProblem(
            f"the step needs {wanted}",
            why=f"{', '.join(others)} is another one, and an engine runs on the compute capability it was built on",
            fix="run it on the target's own GPU type: targets.NAME.runner",
        )
    if len(installed.gpus) < count:
        raise EnvironmentProblem(
            f"the step needs {wanted}",
            why=f"{len(installed.gpus)} visible here",
            fix="ask for as many GPUs as the engine has ranks",
        )


def find_program(release: Release, tool: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """How a tool is started: a console command on PATH, or its script with this Python.

    Raises EnvironmentProblem when it is not here.
    """
    name = tool.partition(" ")[0]
    if not name.endswith(".py"):
        program = shutil.which(name, path=environ.get("PATH"))
        if program is None:
            raise EnvironmentProblem(
                f"{name} is not on PATH",
                why=f"it comes with TensorRT-LLM {release.version}",
                fix="run the step in the release's container",
            )
        return (program,)
    root = environ.get(ROOT_VARIABLE, SCRIPT_ROOT)
    places = [Path(root) / file for file in release.tool(tool).files]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise EnvironmentProblem(
            f"{tool} of TensorRT-LLM {release.version} is not here",
            why=f"there is none of {', '.join(map(str, places))}",
            fix=f"set {ROOT_VARIABLE} to the folder of TensorRT-LLM's sources with `examples`, of the same release",
        )
    return (sys.executable, str(found))


def tool_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a tool: the step's own; no tool fetches anything."""
    own = dict(os.environ if environ is None else environ)
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        **own,
        "PYTHONUNBUFFERED": "1",
    }


def _first(names: tuple[str, ...]) -> str | None:
    return next((version for name in names if (version := installed_version(name))), None)
