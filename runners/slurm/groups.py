"""What is to be run: tasks in groups. One group is one `sbatch`, a job array with one task of the group per index."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtx.errors import UsageProblem
from trtx.runners.slurm.options import Gpu, Resources, check_text

# Slurm's own limit of MaxArraySize.
MAX_INDEX = 4_000_001
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SlurmTask:
    """One step: `index` is its number in the group's array, `folder` its folder of the run, which holds job.json.

    `argv` runs in `folder`. `environment` is written to disk, so it holds no secrets; `inherit` names variables whose
    values come from the environment of the job. `needs` are steps that must have ended well.
    """

    step: str
    index: int
    folder: Path
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherit: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text(f"environment of {self.step}", list(self.environment))


@dataclass(frozen=True)
class Group:
    """Tasks with the same needs, submitted together; at most `throttle` run at once (None: no limit)."""

    name: str
    tasks: tuple[SlurmTask, ...]
    resources: Resources = field(default_factory=Resources)
    throttle: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageProblem(f"'{self.name}' cannot be the name of a group of jobs", fix="use letters, digits, . _ -")
        if not self.tasks:
            raise UsageProblem(f"the group of jobs '{self.name}' is empty")
        if len({task.index for task in self.tasks}) != len(self.tasks):
            raise UsageProblem(f"two tasks of the group '{self.name}' have the same index")

    def task(self, index: int) -> SlurmTask:
        return next(task for task in self.tasks if task.index == index)


def number_tasks(chains: Sequence[tuple[str, Sequence[str]]], indices: Mapping[str, int]) -> dict[str, int]:
    """Indices for the steps of a new group, from (step, steps it needs) and the indices of all earlier steps.

    A step gets the index of a step it needs where that is free, so that chains of cells match one to one.
    """
    made: dict[str, int] = {}
    taken: set[int] = set()
    for step, needs in chains:
        wanted = next((indices[need] for need in needs if indices.get(need, -1) not in {-1, *taken}), None)
        if wanted is not None:
            made[step] = wanted
            taken.add(wanted)
    free = (index for index in itertools.count() if index not in taken)
    for step, _ in chains:
        if step not in made:
            made[step] = next(free)
    return made


def split_indices(indices: Iterable[int], most: int | None) -> list[tuple[int, list[int]]]:
    """Indices in parts that a cluster with MaxArraySize `most` takes, each with what is taken from its indices there.

    Which part an index is in follows from it alone, so that parts of groups in a chain match as the groups do.
    """
    parts: dict[int, list[int]] = {}
    for index in sorted(indices):
        parts.setdefault(index // most * most if most else 0, []).append(index)
    return sorted(parts.items())


def format_indices(indices: Iterable[int]) -> str:
    """Indices as sbatch --array takes them: {0, 1, 2, 7} is "0-2,7"."""
    parts = []
    for _, run in itertools.groupby(enumerate(sorted(indices)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        parts.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ",".join(parts)


def parse_indices(text: str) -> list[int]:
    """Indices as squeue prints them: "3", "0-2,7", "4-10:2", "[5-9%3]". Raises ValueError for anything else."""
    found: list[int] = []
    for part in text.strip("[]").split("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            raise ValueError(f"not indices of a job array: {text!r}")
        first, last, step = (int(number) if number else None for number in match.groups())
        if first is None or max(first, last or 0) > MAX_INDEX or step == 0:
            raise ValueError(f"not indices of a job array: {text!r}")
        found += range(first, (first if last is None else last) + 1, step or 1)
    return found


def group_to_json(group: Group) -> dict[str, Any]:
    document = dataclasses.asdict(group)
    for task in document["tasks"]:
        task["folder"] = str(task["folder"])
    return document


def group_from_json(document: Mapping[str, Any]) -> Group:
    tasks = tuple(
        SlurmTask(
            **{
                **task,
                "folder": Path(task["folder"]),
                "argv": tuple(task["argv"]),
                "inherit": tuple(task["inherit"]),
                "needs": tuple(task["needs"]),
            }
        )
        for task in document["tasks"]
    )
    return Group(document["name"], tasks, resources_from_json(document["resources"]), document["throttle"])


def resources_from_json(document: Mapping[str, Any]) -> Resources:
    gpu = Gpu(**document["gpu"]) if document["gpu"] else None
    return Resources(**{**document, "gpu": gpu, "exclude": tuple(document["exclude"])})
