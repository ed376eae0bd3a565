"""A step of a plan and the plan itself: plain data that survives JSON unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trtx.errors import UsageProblem, did_you_mean
from trtx.stages.job import Input, Job

SCHEMA = "trtx.plan/v1"


@dataclass(frozen=True)
class Step:
    """One step, resolved: what `apply` runs is exactly this.

    `environment` is set, `inherit` names variables passed on from the driver's environment (secrets stay
    references). `cell` is the target/variant it serves, None for steps shared by several. `expected` are the SHA-256
    digests of its files by path, where a lock has them, `choices` what a lock says that its build measured. `resources`
    are what its job asks for, the fields of trtx.runners.slurm.options.Resources; None for a step of this machine.
    `also` are the ids that it would have for the other cells that it serves.
    """

    id: str
    stage: str
    key: str
    factors: dict[str, Any]
    params: dict[str, Any]
    inputs: dict[str, Input]
    argv: tuple[str, ...]
    environment: dict[str, str]
    inherit: tuple[str, ...]
    runner: str
    exclusive: bool
    cell: str | None
    # Not compared: a plan is the same when a lock has learned what its files are.
    expected: dict[str, str] = field(default_factory=dict, compare=False)
    choices: dict[str, Any] = field(default_factory=dict, compare=False)
    resources: dict[str, Any] | None = None
    also: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its id, and what it is called for the other cells that it serves."""
        return (self.id, *self.also)

    def job(self, plan: Plan) -> Job:
        """The content of the step's job.json."""
        return Job(
            step=self.id,
            stage=self.stage,
            key=self.key,
            factors=self.factors,
            params=self.params,
            inputs=self.inputs,
            cache_dir=plan.cache_dir,
            recipe=plan.name,
            expected=self.expected,
            choices=self.choices,
        )


@dataclass(frozen=True)
class Plan:
    """All steps of a selection of a recipe; a step comes after its inputs.

    `gpus` are the devices of its targets, `max_parallel` the steps that may run at once, `files` the SHA-256 of the
    files it was read from, `runners` the settings of the runners that its steps name, without `local` (see
    trtx.plan.resources).
    """

    name: str
    recipe: str
    cache_dir: str
    cells: tuple[str, ...]
    gpus: tuple[str, ...]
    max_parallel: int
    files: dict[str, str]
    steps: tuple[Step, ...]
    runners: dict[str, dict[str, Any]] = field(default_factory=dict)

    def step(self, step_id: str) -> Step:
        """The step of an id, or of what another cell calls it.

        Raises UsageProblem with the nearest id for an unknown one.
        """
        for step in self.steps:
            if step.id == step_id:
                return step
        for step in self.steps:
            if step_id in step.also:
                return step
        names = [name for step in self.steps for name in step.names]
        raise UsageProblem(f"there is no step '{step_id}'", fix=did_you_mean(step_id, names))

    def leaves(self) -> list[Step]:
        """Steps no other step takes as input: what the plan is for."""
        used = {entry.step for step in self.steps for entry in step.inputs.values()}
        return [step for step in self.steps if step.id not in used]

    def to_json(self) -> dict[str, Any]:
        steps = []
        for step in self.steps:
            body = asdict(step)
            body["inputs"] = {name: entry.model_dump() for name, entry in step.inputs.items()}
            steps.append(body)
        return {
            "schema": SCHEMA,
            "name": self.name,
            "recipe": self.recipe,
            "cache_dir": self.cache_dir,
            "cells": list(self.cells),
            "gpus": list(self.gpus),
            "max_parallel": self.max_parallel,
            "files": self.files,
            "runners": self.runners,
            "steps": steps,
        }


def load_plan(body: Mapping[str, Any]) -> Plan:
    """The plan of a JSON value made by `Plan.to_json`."""
    if body.get("schema") != SCHEMA:
        raise UsageProblem(f"this is not a plan of this version of trtx (schema {body.get('schema')})")
    return Plan(
        name=body["name"],
        recipe=body["recipe"],
        cache_dir=body["cache_dir"],
        cells=tuple(body["cells"]),
        gpus=tuple(body["gpus"]),
        max_parallel=body["max_parallel"],
        files=body["files"],
        runners=body["runners"],
        steps=tuple(
            Step(
                **step
                | {
                    "inputs": {name: Input(**entry) for name, entry in step["inputs"].items()},
                    "argv": tuple(step["argv"]),
                    "inherit": tuple(step["inherit"]),
                    "also": tuple(step["also"]),
                }
            )
            for step in body["steps"]
        ),
    )


def split_selection(argument: str) -> tuple[Path, str | None]:
    """`recipe.yaml:h100/fp8` → the file and the glob of cells; a plain path selects all cells."""
    head, separator, tail = argument.rpartition(":")
    if separator and head and not Path(argument).exists():
        return Path(head), tail
    return Path(argument), None
