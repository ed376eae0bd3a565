"""What the process of rank 0 and those of the other ranks say to each other.

Rank 0 sends one `RankJob` as the argument of a process and then commands over a connection; an answer says how far the
process has come, or why it ends. Both sides are one program and one user: what arrives is trusted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from trtx.runtime.inputs import StepInputs
from trtx.runtime.memory import PoolSize
from trtx.runtime.program import Programs

# The default loader: trtx.runtime.program.load_rank.
LOADER = "trtx.runtime.program:load_rank"

# How far a process has come: all that needs no other rank is there; programs are ready to run.
Stage = Literal["loaded", "ready"]


class RankJob(BaseModel):
    """One rank other than 0 of the engine in two folders, and where it meets the others.

    `loader` names a function like load_rank, as `module:function`. `connection` is the number of the file that
    commands come from, `parent` the process that sends them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    weights: str
    rank: int
    num_blocks: int | PoolSize
    loader: str
    folder: str
    connection: int
    parent: int


@dataclass(frozen=True)
class JoinRanks:
    """Meet the other ranks: all have loaded."""


@dataclass(frozen=True)
class RunStep:
    """Run `Programs.step` on these inputs."""

    inputs: tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class SubmitStep:
    """Run `DevicePrograms.submit`; `is_drawn` says that rank 0 draws some of the step's tokens."""

    inputs: StepInputs
    sources: tuple[int, ...]
    is_drawn: bool


@dataclass(frozen=True)
class Failed:
    """Why a process ends: an error of trtx by the name of its class, and its words."""

    kind: str
    what: str
    why: str
    fix: str


Command = JoinRanks | RunStep | SubmitStep
Answer = Stage | Failed


def find_loader(name: str) -> Callable[..., Programs]:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    loader: Callable[..., Programs] = getattr(importlib.import_module(module), function)
    return loader
