"""Whether an engine can run on this machine, by its card. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from trtx.errors import EnvironmentProblem
from trtx.hardware.host import read_host, visible_gpus
from trtx.runtime.card import EngineCard


@dataclass(frozen=True)
class Machine:
    """What of a machine an engine depends on.

    `processor` as in `uname -m`, `cpu_flags` as in /proc/cpuinfo, `torch` a version such as `2.13.0+cpu` or None
    when it is not installed; `gpus` are the architectures of its GPUs, as sm_90.
    """

    processor: str
    cpu_flags: frozenset[str]
    torch: str | None
    gpus: tuple[str, ...] = ()


def read_machine() -> Machine:
    """This machine."""
    host = read_host(gpus=False)
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return Machine(host.machine, host.cpu_flags, torch)


def check_machine(card: EngineCard, machine: Machine | None = None) -> None:
    """Refuse an engine that cannot run here.

    Raises EnvironmentProblem with one sentence that names what is missing.
    """
    found = machine or read_machine()
    target = card.compiled_for
    if target.device == "cuda":
        check_gpus(target.arch, read_gpus() if machine is None else machine.gpus, card.rank.tensor)
    elif found.processor != _processor(target.arch):
        raise EnvironmentProblem(
            f"this engine was compiled for {_processor(target.arch)} processors and this one is {found.processor}",
            fix="build the recipe for a target of this machine",
        )
    missing = [flag for flag in target.cpu_flags if flag not in found.cpu_flags]
    if missing:
        raise EnvironmentProblem(
            f"this engine was compiled for {target.arch} and this processor has no {_join(missing)}",
            fix="build the recipe for a target that this processor reaches",
        )
    built_with = card.toolchain["torch"]
    if found.torch is None or _minor(found.torch) != _minor(built_with):
        has = f"this machine has {found.torch}" if found.torch else "torch is not installed here"
        raise EnvironmentProblem(
            f"this engine was compiled with torch {built_with} and {has}",
            why="compiled programs are bound to the minor release of torch",
            fix=f"install torch {_minor(built_with)}, or rebuild the engine with the torch at hand",
        )


def read_gpus() -> tuple[str, ...]:
    """The architectures of the GPUs that CUDA_VISIBLE_DEVICES leaves."""
    return tuple(gpu.arch for gpu in visible_gpus(read_host(), os.environ))


def check_gpus(arch: str, gpus: Sequence[str], count: int = 1) -> None:
    """Raise EnvironmentProblem unless the first GPUs, those that an engine's ranks run on, have an architecture."""
    if not gpus or any(found != arch for found in gpus[:count]):
        wrong = next((found for found in gpus[:count] if found != arch), "none")
        raise EnvironmentProblem(
            f"this engine was compiled for {arch} GPUs and this machine has {wrong}",
            why="machine code of one architecture does not run on another",
            fix="run it on a machine with such a GPU, or build the recipe for a target of this machine",
        )
    if len(gpus) < count:
        raise EnvironmentProblem(
            f"this engine runs on {count} GPUs and this machine has {len(gpus)}",
            why="each of its tensor-parallel ranks has a GPU of its own",
            fix=f"give it {count} GPUs (CUDA_VISIBLE_DEVICES may hide some), or build it with less tensor parallelism",
        )


def _processor(arch: str) -> str:
    """The machine name (uname -m) of an architecture such as x86-64-v3."""
    return "x86_64" if arch.startswith("x86-64") else arch


def _minor(torch: str) -> str:
    return ".".join(torch.split("+")[0].split(".")[:2])


def _join(words: Iterable[str]) -> str:
    return " and no ".join(words)
