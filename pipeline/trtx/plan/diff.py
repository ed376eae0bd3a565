"""What differs between two recipes by meaning: engine by engine, defaults, variables, units and targets resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtx.hardware.gpus import find_gpu
from trtx.plan.factor_origins import stated_place
from trtx.plan.keys import Change, find_changes, flatten, shorten
from trtx.plan.steps import Plan, Step
from trtx.recipe.cells import Cell
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.measure import Workload
from trtx.recipe.problems import Path
from trtx.recipe.tree import dotted


@dataclass(frozen=True)
class SettingChange:
    """A setting that means something else, in some cells of both recipes. None stands for a setting that is absent.

    `old_origin` and `new_origin` are one line for people, of the first of the cells.
    """

    path: Path
    old: Any
    new: Any
    old_origin: str
    new_origin: str
    cells: tuple[str, ...]

    @property
    def name(self) -> str:
        return dotted(self.path)

    def __str__(self) -> str:
        return f"{self.name}: {shorten(self.old)} → {shorten(self.new)}"


@dataclass(frozen=True)
class RecipeDiff:
    """`cells` are those of both."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    cells: tuple[str, ...]
    changes: tuple[SettingChange, ...]

    @property
    def equal(self) -> bool:
        return not (self.added or self.removed or self.changes)


@dataclass(frozen=True)
class StepChange:
    """A step of one name with two keys. `changes` are its own factors; without any it follows `inputs`."""

    step: str
    changes: tuple[Change, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class PlanDiff:
    """Steps by id."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[StepChange, ...]
    same: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return not (self.added or self.removed or self.changed)


def compare_recipes(
    old: LoadedRecipe, new: LoadedRecipe, old_cells: Sequence[Cell], new_cells: Sequence[Cell]
) -> RecipeDiff:
    """Compare the cells of one name; those that only one side has are added or removed."""
    before, after = ({cell.name: cell for cell in cells} for cells in (old_cells, new_cells))
    both = [name for name in before if name in after]
    found: dict[tuple[Path, str, str], tuple[Any, Any, list[str]]] = {}
    for name in both:
        first, second = meaning_of(before[name]), meaning_of(after[name])
        for path in dict.fromkeys((*first, *second)):
            pair = first.get(path), second.get(path)
            if pair[0] != pair[1]:
                found.setdefault((path, repr(pair[0]), repr(pair[1])), (*pair, []))[2].append(name)
    changes = (
        SettingChange(
            path, a, b, _origin(old, before[names[0]], path), _origin(new, after[names[0]], path), tuple(names)
        )
        for (path, _, _), (a, b, names) in found.items()
    )
    return RecipeDiff(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        cells=tuple(both),
        changes=tuple(changes),
    )


def meaning_of(cell: Cell) -> dict[Path, Any]:
    """Every setting that an engine is made by, and how, by its place in the recipe; mappings are in no order."""
    recipe, target = cell.recipe, cell.recipe.targets[cell.target]
    body = recipe.model_dump(exclude={"quantization", "engine", "targets", "runners", "benchmark"}, by_alias=True)
    body["quantization"] = {cell.variant: recipe.quantization[cell.variant].model_dump()}
    body["engine"] = recipe.engine_for(cell.target).model_dump()
    body["targets"] = {cell.target: target.model_dump(exclude={"engine", "quantization"})}
    body["targets"][cell.target]["gpu"] = find_gpu(target.gpu).name
    if recipe.benchmark is not None:
        body["benchmark"] = recipe.benchmark.model_dump(exclude={"workloads"})
        body["benchmark"]["workloads"] = {name: _load(load) for name, load in recipe.benchmark.workloads.items()}
    if target.runner in recipe.runners:
        body["runners"] = {target.runner: recipe.runners[target.runner].model_dump()}
    return {path: value for path, value in flatten(body).items() if value is not None}


def _load(load: Workload) -> dict[str, Any]:
    return load.model_dump() | {"requests": load.num_requests}


def _origin(loaded: LoadedRecipe, cell: Cell, path: Path) -> str:
    return str(loaded.point_of(cell).origin(stated_place(cell, path)))


def compare_plans(old: Plan, new: Plan) -> PlanDiff:
    """Steps that only one plan has, and those whose keys differ, with the factors that moved.

    A step that cells share is called after the first of them: under another name, the same key is the same step.
    """
    before, after = ({step.id: step for step in plan.steps} for plan in (old, new))
    known_before, known_after = ({step.key for step in plan.steps} for plan in (old, new))
    both = [name for name in before if name in after]
    moved = [name for name in both if before[name].key != after[name].key]
    return PlanDiff(
        added=tuple(name for name in after if name not in before and after[name].key not in known_before),
        removed=tuple(name for name in before if name not in after and before[name].key not in known_after),
        changed=tuple(_compare_steps(before[name], after[name]) for name in moved),
        same=tuple(name for name, step in before.items() if name not in moved and step.key in known_after),
    )


def _compare_steps(old: Step, new: Step) -> StepChange:
    changes = find_changes(old.factors, new.factors)
    roles = [str(change.path[-1]) for change in changes if change.is_input]
    inputs = (new.inputs.get(role) or old.inputs[role] for role in roles)
    return StepChange(
        new.id, tuple(change for change in changes if not change.is_input), tuple(entry.step for entry in inputs)
    )


def changes_json(changes: Iterable[Change]) -> list[Mapping[str, Any]]:
    """Factors that moved, for tools."""
    return [{"factor": change.name, "old": change.old, "new": change.new} for change in changes]
