"""Refusals before anything is spent: what the steps that will run need and this machine lacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.files import free_bytes
from trtx.plan.facts import ABSENT, Facts
from trtx.plan.steps import Plan
from trtx.plan.survey import State, StepStatus

# Distribution → the stages that import it.
NEEDED = {
    "torch": ("calibrate", "convert", "build", "benchmark"),
    "transformers": ("calibrate", "build"),
    "nvidia-modelopt": ("calibrate",),
    "safetensors": ("calibrate", "convert", "build", "benchmark"),
    "tokenizers": ("calibrate", "benchmark"),
}
# Below this much free space even a small recipe fails half-way.
MIN_FREE_BYTES = 512 << 20


def check_machine(plan: Plan, statuses: Iterable[StepStatus], facts: Facts) -> None:
    """Raises EnvironmentProblem for the first thing that is missing; says nothing when no step has to run."""
    stages = {status.step.stage for status in statuses if status.state in (State.TO_RUN, State.WAITING)}
    if not stages:
        return
    for name, users in NEEDED.items():
        if stages & set(users) and facts.versions.get(name, ABSENT) == ABSENT:
            raise EnvironmentProblem(
                f"the Python package {name} is not installed",
                why=f"the stage {next(stage for stage in users if stage in stages)} needs it",
                fix="install the engine packages: pip install 'trtx[engine]'",
            )
    if "build" in stages and facts.compiler == ABSENT:
        raise EnvironmentProblem(
            "there is no C++ compiler",
            why="AOTInductor compiles CPU engines with g++",
            fix="install it, on Debian: apt-get install g++",
        )
    free = free_bytes(Path(plan.cache_dir))
    if free < MIN_FREE_BYTES:
        raise EnvironmentProblem(
            f"only {free >> 20} MiB are free for the cache in {plan.cache_dir}",
            fix="free some space or point TRTX_CACHE_DIR at a larger disk",
        )
