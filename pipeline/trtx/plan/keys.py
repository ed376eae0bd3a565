"""The one function that makes keys, the one list of what enters them, and the one list of what does not.

A key is the SHA-256 of the canonical JSON of a step's factors. What is not a factor cannot move a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtx.files import canonical_json, sha256_bytes
from trtx.recipe.problems import Path
from trtx.recipe.tree import dotted
from trtx.stages.params import Params

SCHEMA = "trtx.key/v1"

# Everything that enters a key, in the order it is recorded in.
FACTORS = ("schema", "stage", "code", "params", "inputs", "toolchain", "machine")

# Everything else that a plan holds or is made from, and why it cannot change what a step gives. Tests hold that the
# two lists are all there is, and that moving what stands here moves no key.
EXCLUDED: Mapping[str, str] = {
    "step.id": "a name for people; two steps of one key are one step",
    "step.also": "names for people, of the other cells that a step serves",
    "step.cell": "the first of the engines that a step serves; a package, which carries the name, has it in its params",
    "step.argv": "how a worker is started; what its code does is the factor `code`",
    "step.environment": "numbers of threads and switches that keep steps off the network",
    "step.inherit": "names of variables: where programs, homes, proxies and tokens are",
    "step.runner": "where a step runs; what it compiles for is one of its params",
    "step.resources": "what its job asks for; a measurement has the machine in its factors",
    "step.exclusive": "whether other steps may run beside it",
    "step.expected": "what a lock says that the bytes are; a step that gives others fails",
    "step.choices": "which of the fastest choices was measured, where a lock says so; else the step measures them",
    "step.witnesses": "inputs that a new entry is checked with, and that leave no trace in it",
    "plan.name": "the recipe's name; a package, which carries it, has it in its params",
    "plan.recipe": "where the recipe is",
    "plan.cache_dir": "where entries are kept",
    "plan.cells": "which engines are asked for",
    "plan.gpus": "which devices they are for, together; each build has its own in its params",
    "plan.max_parallel": "how many steps run at once",
    "plan.files": "how the recipe is written down; what it says is in the params",
    "plan.runners": "where steps run; what they compile for is one of their params",
    "options.until": "which steps are asked for",
    "options.max_parallel": "how many steps run at once",
    "options.files": "how the recipe is written down; what it says is in the params",
    "options.site_runners": "where steps run; what they compile for is one of their params",
    "options.runner": "where steps run; what they compile for is one of their params",
    "facts.python": "where the interpreter is",
    "facts.cache_dir": "where entries are kept",
    "facts.driver": "what a build compiles for is its `arch`",
    "host.machine": "what a build compiles for is its `arch`",
    "host.cpu_flags": "what a build compiles for is its `arch`; measurements have the model of the processor",
    "host.memory_bytes": "too little of it fails a step and changes none",
    "host.gpus": "what a build compiles for is its `arch`",
    "host.driver": "what a build compiles for is its `arch`",
    "host.gpus_problem": "why devices could not be listed",
}


def make_factors(
    params: Params, *, inputs: Mapping[str, str], toolchain: Mapping[str, str], machine: Mapping[str, str]
) -> dict[str, Any]:
    """All that a step's bytes depend on.

    `inputs` are the keys of its (non-witness) inputs, `toolchain` versions by name, `machine` the facts of the
    hardware for stages that measure; what a stage compiles for is one of its parameters.
    """
    return {
        "schema": SCHEMA,
        "stage": params.stage,
        "code": params.code_version,
        "params": params.model_dump(mode="json"),
        "inputs": dict(inputs),
        "toolchain": dict(toolchain),
        "machine": dict(machine),
    }


def make_key(factors: Mapping[str, Any]) -> str:
    """Full hex SHA-256; never shortened where it identifies anything."""
    return sha256_bytes(canonical_json(factors))


@dataclass(frozen=True)
class Change:
    """A factor that differs between two steps; None stands for a factor that one of them lacks."""

    path: Path
    old: Any
    new: Any

    @property
    def name(self) -> str:
        return dotted(self.path)

    @property
    def is_input(self) -> bool:
        """Whether it only follows what another step became."""
        return self.path[0] == "inputs"

    def __str__(self) -> str:
        return f"{self.name}: {shorten(self.old)} → {shorten(self.new)}"


def find_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Differences between two steps' factors, inputs last because they only follow others."""
    before, after = flatten(old), flatten(new)
    changes = (
        Change(path, before.get(path), after.get(path))
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    )
    return sorted(changes, key=lambda change: (change.is_input, change.name))


def changed_factors(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The same as texts, `path: old → new`."""
    return [str(change) for change in find_changes(old, new)]


def flatten(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Every value that is no mapping, by its path."""
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[Path, Any] = {}
    for name, member in value.items():
        flat |= flatten(member, (*path, name))
    return flat


def shorten(value: Any) -> str:
    """A value for people: digests cut, and everything longer than 40 characters."""
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= 40 else text[:12] + "…"
