"""Where every factor of a step came from: a setting, a pinned source, the model, an installed package, the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trtx import __version__
from trtx.plan.effects import EFFECTS, is_within, settings_of
from trtx.plan.effects_tensorrt_llm import ALL, SERVED
from trtx.plan.keys import flatten
from trtx.plan.steps import Plan, Step
from trtx.recipe.cells import Cell
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.parts import Part
from trtx.recipe.problems import Path
from trtx.recipe.schema import AS_STORED
from trtx.recipe.tree import dotted
from trtx.stages.toolchain import OF_IMAGE

Kind = Literal["recipe", "source", "model", "installed", "machine", "input", "trtx", "release"]


@dataclass(frozen=True)
class FactorOrigin:
    """`where` is one line for people; `setting` is the place of the recipe that decides, if one does."""

    kind: Kind
    where: str
    setting: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.setting, self.where)))


@dataclass(frozen=True)
class Derived:
    """A parameter that is not what a setting says, but follows from it or from nothing in the recipe."""

    kind: Kind
    note: str


# By stage and path below it. What stands neither here nor in the table of effects has no origin: a test finds it.
DERIVED: Mapping[str, Derived] = {
    "download.params.identity": Derived("source", "the commit or digest that it is pinned to"),
    "dataset.params.identity": Derived("source", "the commit or digest that it is pinned to"),
    "calibrate.params.max_length": Derived("recipe", "and at most the positions that the model has"),
    "convert.params.dtype": Derived("model", "config.json; a CPU takes bfloat16 for float16"),
    "build.params.dtype": Derived("model", "config.json; a CPU takes bfloat16 for float16"),
    "build.params.model": Derived("model", "config.json"),
    "build.params.arch": Derived("recipe", "what the catalogue compiles for this device"),
    "build.params.rank.rank": Derived("trtx", "one program serves all ranks"),
    "package.params.cell": Derived("recipe", "names of the target, the variant and the matrix's values"),
    **{
        f"{stage}.params.quantization.{name}": Derived("trtx", "how ModelOpt packs the algorithm")
        for stage in ("calibrate", "build")
        for name in ("group_size", "zero_points", "reordered", "packing")
    },
    **{
        f"{stage}.params.spec.{name}": derived
        for stage in ALL
        for name, derived in {
            "shape": Derived("model", "config.json"),
            "dtype": Derived("model", "config.json"),
            "container": Derived("release", "its image, with the digest that the lock has"),
            "converter": Derived("recipe", "auto is trtx where it can write the checkpoint"),
            **{
                f"quantization.{name}": Derived("trtx", "how ModelOpt packs the algorithm")
                for name in ("group_size", "zero_points", "reordered", "packing")
            },
        }.items()
    },
    **{f"{stage}.params.backend": Derived("recipe", "engine.backend") for stage in ALL},
    **{
        f"{stage}.params.spec.{name}": derived
        for stage in SERVED
        for name, derived in {
            "flow": Derived("release", "auto is what the release does by default"),
            "pool.tokens_per_block": Derived("release", "the release's own where the recipe says nothing"),
            "device": Derived("recipe", "what the catalogue has of this device"),
            "speculation": Derived("recipe", "engine.speculative"),
            "lora": Derived("recipe", "engine.lora"),
        }.items()
    },
}
TOOLS: Mapping[str, tuple[Kind, str]] = {
    "tables": ("release", "digest of what is known of its tools and their options"),
    "c++": ("machine", "compiler on PATH"),
    "python": ("installed", "interpreter"),
    "kernels": ("trtx", "digest of the kernels' sources"),
    "trtx": ("trtx", "digest of trtx's own files"),
}
QUANTIZATION = ("params", "quantization")
IMAGES: tuple[tuple[str, str], ...] = (("package", "base"), ("package", "triton_base"))
# Settings with free names → the factor that has the same names below it.
MAPPINGS: Mapping[str, Path] = {
    "engine.plugins": ("params", "spec", "plugins"),
    "engine.build_options": ("params", "spec", "options"),
    "engine.llm_options": ("params", "spec", "options"),
}
LOCKED = ", with the digest that the lock has"
MACHINE: Mapping[str, str] = {
    "cpu": "model of the processor",
    "cpus": "processors this process may use",
    "target": "the kind of machine that the cluster has for this target",
}


class Origins:
    """Answers for the steps of a plan whose recipe is not at hand, such as a run's: which settings decide."""

    def of(self, step: Step) -> dict[Path, FactorOrigin]:
        """The origin of every factor of a step."""
        return {path: self._origin(step, path) for path in flatten(step.factors)}

    def _origin(self, step: Step, path: Path) -> FactorOrigin:
        head, name = path[0], str(path[-1])
        if head == "params":
            return self._of_param(step, path)
        if head == "inputs":
            return FactorOrigin("input", step.inputs[name].step)
        if head == "toolchain":
            return _of_tool(name)
        if head == "machine":
            return FactorOrigin("machine", MACHINE[name])
        if head == "code":
            return FactorOrigin("trtx", f"version of the stage's code in trtx {__version__}")
        return FactorOrigin("trtx", "name of the stage" if head == "stage" else "form of keys")

    def _of_param(self, step: Step, path: Path) -> FactorOrigin:
        derived, rows = find_derived(step.stage, path), settings_of(step.stage, path)
        return FactorOrigin(
            derived.kind if derived else "recipe", derived.note if derived else "the recipe", " or ".join(rows)
        )


@dataclass(frozen=True)
class RecipeOrigins(Origins):
    """Answers with the places of the recipe. `plan_cell` plans one of its cells alone."""

    loaded: LoadedRecipe
    cells: Sequence[Cell]
    plan_cell: Callable[[Cell], Plan]
    _cells: dict[str, Cell] = field(default_factory=dict)

    def cell_of(self, step: Step) -> Cell:
        """The first cell that a step serves."""
        if step.id not in self._cells:
            named = (cell for cell in self.cells if cell.name == step.cell)
            serving = (cell for cell in self.cells if any(one.key == step.key for one in self.plan_cell(cell).steps))
            self._cells[step.id] = next(named, None) or next(serving, self.cells[0])
        return self._cells[step.id]

    def _of_param(self, step: Step, path: Path) -> FactorOrigin:
        stage, cell = step.stage, self.cell_of(step)
        derived, rows = find_derived(stage, path), settings_of(stage, path)
        if path[:2] == QUANTIZATION and cell.recipe.quantization[cell.variant].algorithm == AS_STORED:
            chosen: Path = ("quantization", cell.variant, "algorithm")
            where = f"{self.loaded.point_of(cell).origin(chosen)}; what the files of {cell.recipe.model.source} say"
            return FactorOrigin("model", where, dotted(chosen))
        if derived is not None and not rows:
            where = f"{derived.note} of {cell.recipe.model.source}" if derived.kind == "model" else derived.note
            return FactorOrigin(derived.kind, where)
        point = self.loaded.point_of(cell)
        places = [place_of(stage, path, row, cell) for row in rows]
        if derived is None:
            # Of several settings, such as levels and requests, the last that is stated decides.
            stated = [place for place in places if point.origin(place).kind != "default"] or places[:1]
            last = stated[-1]
            moved = last in IMAGES and step.params[last[-1]] not in (None, getattr(cell.recipe.package, last[-1]))
            return FactorOrigin("recipe", f"{point.origin(last)}{LOCKED if moved else ''}", dotted(last))
        place = places[0]
        if derived.kind == "model" and cell.recipe.engine_for(cell.target).dtype != "auto":
            return FactorOrigin("recipe", str(point.origin(place)), dotted(place))
        return FactorOrigin(derived.kind, f"{point.origin(place)}; {derived.note}", dotted(place))


def _of_tool(name: str) -> FactorOrigin:
    if name.startswith(OF_IMAGE):
        return FactorOrigin("release", "what the release's image has, by the tables")
    return FactorOrigin(*TOOLS.get(name, ("installed", "installed distribution")))


def find_derived(stage: str, path: Path) -> Derived | None:
    """The row of DERIVED for a parameter of a stage."""
    return next((row for name, row in DERIVED.items() if is_within((stage, *path), name)), None)


def place_of(stage: str, factor: Path, row: str, cell: Cell) -> Path:
    """The place of a cell's recipe that a row of the table of effects means for one factor."""
    free = _free_names(stage, factor, row)
    names = {"quantization": cell.variant, "targets": cell.target}
    parts = row.split(".")
    place: Path = tuple(names.get(parts[0]) or next(free) if part == "*" else part for part in parts)
    if row in MAPPINGS and len(factor) > len(MAPPINGS[row]):
        place = (*place, factor[len(MAPPINGS[row])])
    return stated_place(cell, place)


def stated_place(cell: Cell, place: Path) -> Path:
    """Where a cell's recipe states a setting: in the target's own engine, if that says something about it."""
    override = ("targets", cell.target, *place)
    return override if place[0] == "engine" and _is_set(cell.recipe.targets[cell.target].engine, place[1:]) else place


def _free_names(stage: str, factor: Path, row: str) -> Iterator[str]:
    """What stands in a factor where its declaration has a `*`."""
    for declared in EFFECTS[row].factors[stage]:
        if is_within(factor, declared):
            return iter([str(part) for part, name in zip(factor, declared.split("."), strict=False) if name == "*"])
    raise KeyError(row)


def _is_set(part: Part | Mapping[str, Any], path: Path) -> bool:
    """Whether a partial model says something at a path, down into its mappings."""
    for name in path:
        if isinstance(part, Mapping):
            return name in part
        if not isinstance(part, Part) or name not in part.model_fields_set:
            return False
        part = getattr(part, str(name))
    return True
