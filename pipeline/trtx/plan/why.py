"""Why a step runs or does not: the nearest entry of the cache, the first factor that differs, what the miss costs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtx.cache.manifest import Manifest
from trtx.errors import UsageProblem, did_you_mean
from trtx.paths import runs_dir
from trtx.plan.keys import Change, find_changes
from trtx.plan.record import RunRecord
from trtx.plan.steps import Plan, Step
from trtx.plan.survey import State, StepStatus
from trtx.stages.job import read_result

# States of steps that do not run: a remote's entry takes no longer than its transfer.
COSTLESS = frozenset({State.CACHED, State.DONE, State.NOT_NEEDED, State.REMOTE, State.PULLING, State.SENDING})


@dataclass(frozen=True)
class Cause:
    """A step whose own factors differ from those of an older entry. `trail` are the steps from the asked one to it.

    Without `changes` the trail ends at an entry that is no longer in the cache.
    """

    trail: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def step(self) -> str:
        return self.trail[-1]


@dataclass(frozen=True)
class Nearest:
    """The entry of the same stage with the fewest different factors."""

    manifest: Manifest
    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Estimate:
    """How long a step will take. `basis` is the step that took so long; both None when nothing like it is recorded."""

    step: str
    seconds: float | None
    basis: str | None


@dataclass(frozen=True)
class Explanation:
    """All there is to say about one step. `cost` are the steps that run because it does, itself first."""

    status: StepStatus
    nearest: Nearest | None
    cost: tuple[Estimate, ...]

    @property
    def step(self) -> Step:
        return self.status.step

    @property
    def known_cost_s(self) -> float:
        return sum(estimate.seconds for estimate in self.cost if estimate.seconds is not None)

    @property
    def unknown_cost(self) -> tuple[str, ...]:
        """Steps of the cost that nothing is recorded about."""
        return tuple(estimate.step for estimate in self.cost if estimate.seconds is None)


class Entries:
    """The manifests of a cache, for looking up entries by key and by likeness."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self.by_key: dict[str, Manifest] = {}
        self.by_stage: dict[str, list[Manifest]] = {}
        for manifest in manifests:
            self.by_key[manifest.key] = manifest
            self.by_stage.setdefault(manifest.stage, []).append(manifest)

    def nearest(self, step: Step) -> Manifest | None:
        """The most similar entry of another key: fewest different factors, then the same step, then the newest."""
        others = [manifest for manifest in self.by_stage.get(step.stage, ()) if manifest.key != step.key]
        return min(
            others,
            key=lambda manifest: (
                len(find_changes(manifest.factors, step.factors)),
                manifest.step != step.id,
                -float(manifest.provenance.get("started", 0)),
            ),
            default=None,
        )

    def estimate(self, step: Step) -> Estimate:
        """How long a step took when it, or the step most like it, was last made."""
        manifest = self.by_key.get(step.key) or self.nearest(step)
        seconds = manifest.provenance.get("duration_s") if manifest else None
        if manifest is None or seconds is None:
            return Estimate(step.id, None, None)
        return Estimate(step.id, float(seconds), manifest.step)


def explain(plan: Plan, statuses: Sequence[StepStatus], entries: Entries, step: Step) -> Explanation:
    """Explain the state of one step of a plan. Hits have a nearest entry as well: what would come closest."""
    status = next(status for status in statuses if status.step.id == step.id)
    runs = status.state not in COSTLESS
    cost = tuple(entries.estimate(one) for one in _runs_because_of(plan, statuses, step)) if runs else ()
    return Explanation(status, find_nearest(plan, entries, step), cost)


def find_nearest(plan: Plan, entries: Entries, step: Step) -> Nearest | None:
    """The nearest entry and what really differs from it: own factors, and the first upstream of inputs that differ."""
    manifest = entries.nearest(step)
    if manifest is None:
        return None
    changes = tuple(find_changes(manifest.factors, step.factors))
    causes = find_causes(plan, entries, step, manifest.factors)
    return Nearest(manifest, changes, tuple(causes))


def find_causes(
    plan: Plan, entries: Entries, step: Step, old: Mapping[str, object], trail: tuple[str, ...] = ()
) -> list[Cause]:
    """Where the differences between a step and an older entry begin: its own factors first, then its inputs'."""
    trail = (*trail, step.id)
    changes = find_changes(old, step.factors)
    own = tuple(change for change in changes if not change.is_input)
    found = [Cause(trail, own)] if own else []
    for change in changes:
        role = str(change.path[-1])
        if not change.is_input or role not in step.inputs:
            continue
        before = entries.by_key.get(str(change.old))
        source = plan.step(step.inputs[role].step)
        if before is None or before.stage != source.stage:
            found.append(Cause((*trail, source.id), ()))
        else:
            found += find_causes(plan, entries, source, before.factors, trail)
    # Two inputs may lead to one step.
    return list({cause.step: cause for cause in reversed(found)}.values())[::-1]


def _runs_because_of(plan: Plan, statuses: Sequence[StepStatus], step: Step) -> list[Step]:
    """The step and all that take its key, directly or not, and have to run."""
    runs = {status.step.id for status in statuses if status.state not in COSTLESS}
    affected = {step.id}
    for other in plan.steps:
        if any(entry.step in affected and not entry.witness for entry in other.inputs.values()):
            affected.add(other.id)
    return [other for other in plan.steps if other.id in affected and (other.id in runs or other.id == step.id)]


def choose_steps(plan: Plan, word: str) -> list[Step]:
    """The steps that an id or a glob names. Raises UsageProblem with the nearest id for an unknown one."""
    chosen = (
        [step for step in plan.steps if step.id == word]
        or [step for step in plan.steps if word in step.also]
        or [step for step in plan.steps if any(fnmatch.fnmatchcase(name, word) for name in step.names)]
    )
    if not chosen:
        fix = did_you_mean(word, [name for step in plan.steps for name in step.names])
        raise UsageProblem(f"there is no step '{word}'", why=f"{plan.recipe} has no step of this name", fix=fix)
    return chosen


def run_that_made(project: Path, manifest: Manifest) -> str | None:
    """The id of the run of a project that published an entry; None for one of another folder or host."""
    for path in sorted(runs_dir(project).glob("*/plan.json"), reverse=True):
        record = RunRecord(path.parent)
        results = (
            read_result(record.attempt_folder(manifest.step, number)) for number in record.attempts(manifest.step)
        )
        if any(result and result.key == manifest.key and result.state == "published" for result in results):
            return record.id
    return None
