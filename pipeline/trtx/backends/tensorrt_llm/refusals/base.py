"""What a refusal is, and what it looks at: one engine of a recipe with its release, GPU and model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from trtx.backends.tensorrt_llm.hard_rules import RULES, HardRule
from trtx.backends.tensorrt_llm.releases import Flow, Release
from trtx.backends.tensorrt_llm.spec import Shape
from trtx.hardware.gpus import Gpu
from trtx.recipe.problems import Path
from trtx.recipe.runners import Job
from trtx.recipe.schema import Engine, Parallelism, Quantization

Severity = Literal["error", "warning"]
BY_ID = {rule.id: rule for rule in RULES}


@dataclass(frozen=True)
class Subject:
    """One engine. `shape` is None while nobody knows the model; then what depends on it is not looked at.

    `driver` is the NVIDIA driver of the machine that runs the steps, `host_bytes` the memory of the machine or job that
    quantizes (0: not known), both where the plan can know them. `source` is a URL, `emit` what is packaged,
    `measures` whether there is a benchmark.
    """

    release: Release
    flow: Flow
    engine: Engine
    parallelism: Parallelism
    variant: Quantization
    gpu: Gpu
    source: str
    emit: tuple[str, ...] = ()
    measures: bool = False
    job: Job = field(default_factory=Job)
    shape: Shape | None = None
    driver: str | None = None
    host_bytes: int = 0
    host: str = ""

    @property
    def sm(self) -> int:
        """Compute capability as 90; 0 for a device that has none."""
        return int(self.gpu.arch.removeprefix("sm_")) if self.gpu.arch.startswith("sm_") else 0

    @property
    def algorithm(self) -> str:
        """How weights are stored in the end: the recipe's algorithm, or with `none` what the checkpoint has already."""
        if self.variant.algorithm == "none" and self.shape is not None:
            return self.shape.stored_as
        return self.variant.algorithm

    @property
    def world_size(self) -> int:
        ways = self.parallelism
        return ways.tensor * ways.pipeline * ways.context

    @property
    def plugins(self) -> dict[str, str]:
        """Plugins and switches of trtllm-build that the recipe states, by name and word."""
        return {name: word_of(value) for name, value in self.engine.plugins.items()}

    def plugin(self, name: str) -> str | None:
        """What the recipe says of a plugin or switch, wherever it says it."""
        if name in self.engine.plugins:
            return word_of(self.engine.plugins[name])
        value = self.engine.build_options.get(name)
        return None if value is None else word_of(value)

    def place_of(self, name: str) -> Path:
        """The setting by which the recipe states a flag of trtllm-build."""
        return ("engine", "plugins" if name in self.engine.plugins else "build_options", name)

    @property
    def title(self) -> str:
        return f"TensorRT-LLM {self.release.version}"


def word_of(value: object) -> str:
    """A value of `plugins` as trtllm-build has it: a switch is enable or disable."""
    return {True: "enable", False: "disable"}[value] if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Refusal:
    """One thing that does not work, or works otherwise than it is written.

    `setting` is the place: ("engine", …), ("parallelism", …), ("quantization", …) of the variant, ("gpu",), ("job",
    …), ("model", …), ("package", …). `rule` names what refuses, `source` where that stands.
    """

    rule: str
    setting: Path
    what: str
    why: str = ""
    fix: str = ""
    source: str = ""
    severity: Severity = "error"
    at_key: bool = False


Check = Callable[[Subject], Iterator[Refusal]]


def refuse_by(
    subject: Subject, rule_id: str, setting: Path, what: str, fix: str, *, why: str = "", at_key: bool = False
) -> Refusal:
    """A refusal by a rule of TensorRT-LLM's code; an override or a warning of the code is a warning here."""
    rule: HardRule = BY_ID[rule_id]
    severity: Severity = "error" if rule.effect == "error" else "warning"
    read = "" if subject.release.version == "1.3.0rc3" else ", as read in 1.3.0rc3"
    return Refusal(rule_id, setting, what, why or rule.outcome, fix, f"{rule.source}{read}", severity, at_key)


@functools.cache
def all_checks() -> tuple[Check, ...]:
    """Every check, in the order in which its problems are found."""
    from trtx.backends.tensorrt_llm.refusals import (
        calibration,
        flows,
        limits,
        llm_options,
        memory,
        options,
        overrides,
        parallel,
        precision,
        speculation,
    )

    modules = (
        flows,
        options,
        llm_options,
        precision,
        parallel,
        limits,
        overrides,
        speculation,
        calibration,
        memory,
    )
    return tuple(check for module in modules for check in module.CHECKS)


def find_refusals(subject: Subject) -> list[Refusal]:
    """All that is wrong with one engine; a release without the flow has nothing else to say."""
    found: list[Refusal] = []
    for check in all_checks():
        found += check(subject)
        if any(refusal.rule in FATAL for refusal in found):
            break
    return found


# What makes every other answer pointless.
FATAL = frozenset({"engine-flow-removed", "pytorch-flow", "architecture"})
