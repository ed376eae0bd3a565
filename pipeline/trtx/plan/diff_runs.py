"""What differs between two runs: their steps, how each went, how long it took, and the figures that it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.plan.diff import PlanDiff, compare_plans
from trtx.plan.keys import flatten
from trtx.plan.record import RunRecord
from trtx.plan.steps import Plan
from trtx.recipe.tree import dotted

# Figures of a manifest's summary that are results; the others are sizes and counts.
RESULTS: Mapping[str, tuple[str, ...]] = {
    "calibrate": ("perplexity", "bits_per_byte"),
    "benchmark": ("output_tokens_per_s",),
}


@dataclass(frozen=True)
class Outcome:
    """How a step ended in a run: `done`, `failed`, `blocked`, `interrupted`, `cached`; or `not run`.

    `duration_s` is how long it ran there.
    """

    state: str
    duration_s: float | None = None


@dataclass(frozen=True)
class Figure:
    """One result of a step in both runs. `relative` is the change over the old value, None where that is zero."""

    step: str
    name: str
    old: float
    new: float

    @property
    def relative(self) -> float | None:
        return (self.new - self.old) / self.old if self.old else None


@dataclass(frozen=True)
class RunDiff:
    """`outcomes` of both runs by step id; `figures` are those of steps whose entries are both in the cache."""

    steps: PlanDiff
    outcomes: Mapping[str, tuple[Outcome | None, Outcome | None]]
    figures: tuple[Figure, ...]

    @property
    def equal(self) -> bool:
        """Whether both made or found the same and ended alike; durations are never the same."""
        return self.steps.equal and all(a and b and _ended_well(a) == _ended_well(b) for a, b in self.outcomes.values())


def _ended_well(outcome: Outcome) -> str:
    return "ok" if outcome.state in ("done", "cached") else outcome.state


def compare_runs(old: RunRecord, new: RunRecord) -> RunDiff:
    """Compare two runs on record. Raises UsageProblem for a run of another version of trtx."""
    plans = old.load_plan(), new.load_plan()
    first, second = read_outcomes(old, plans[0]), read_outcomes(new, plans[1])
    outcomes = {name: (first.get(name), second.get(name)) for name in dict.fromkeys((*first, *second))}
    return RunDiff(compare_plans(*plans), outcomes, tuple(_compare_figures(*plans)))


def read_outcomes(record: RunRecord, plan: Plan) -> dict[str, Outcome]:
    """How every step of a run ended, by what the run itself wrote: the cache may have changed since."""
    last: dict[str, Mapping[str, Any]] = {}
    for event in record.events():
        if "step" in event:
            last[event["step"]] = event
    ended_well = not any(event["event"] != "done" for event in last.values())
    silent = Outcome("cached" if ended_well else "not run")
    return {step.id: _outcome(last[step.id]) if step.id in last else silent for step in plan.steps}


def _outcome(event: Mapping[str, Any]) -> Outcome:
    # A step that started and of which nothing more was heard: its driver was killed.
    state = "interrupted" if event["event"] == "started" else str(event["event"])
    return Outcome(state, event.get("duration_s"))


def _compare_figures(old: Plan, new: Plan) -> list[Figure]:
    found = []
    for step in new.steps:
        before = next((other for other in old.steps if other.id == step.id), None)
        if before is None or before.key == step.key or step.stage not in RESULTS:
            continue
        manifests = _peek(old, before.key), _peek(new, step.key)
        if manifests[0] is not None and manifests[1] is not None:
            found += _pair(step.id, _figures(manifests[0]), _figures(manifests[1]))
    return found


def _peek(plan: Plan, key: str) -> Manifest | None:
    return Store(Path(plan.cache_dir)).find(key).manifest


def _figures(manifest: Manifest) -> dict[str, float]:
    """The results of an entry by name, such as `perplexity.after`."""
    chosen = {name: manifest.summary.get(name, {}) for name in RESULTS[manifest.stage]}
    return {
        dotted(path): float(value)
        for path, value in flatten(chosen).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _pair(step: str, old: Mapping[str, float], new: Mapping[str, float]) -> list[Figure]:
    return [Figure(step, name, old[name], new[name]) for name in old if name in new]
