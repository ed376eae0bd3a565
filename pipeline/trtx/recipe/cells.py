"""Cells: one engine each. Their names are stable: they depend on nothing but the cell itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trtx.errors import UsageProblem, did_you_mean
from trtx.recipe.schema import Recipe


@dataclass(frozen=True)
class Choice:
    """The value of one axis of the matrix.

    `sections` are the top-level keys of the recipe that the axis changes.
    """

    axis: str
    value: str
    sections: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.axis}-{self.value}"


@dataclass(frozen=True)
class Cell:
    """One engine: a target, a variant, and a value of every axis that changes it.

    `recipe` is the whole recipe with these values in place.
    """

    target: str
    variant: str
    choices: tuple[Choice, ...] = ()
    recipe: Recipe = field(kw_only=True, repr=False, compare=False)

    @property
    def name(self) -> str:
        """`target/variant`, with a matrix `target/variant/axis-value_axis-value`: its name everywhere."""
        return "/".join([self.target, self.variant, *filter(None, [self.point])])

    @property
    def point(self) -> str:
        """The part of the name that the matrix adds; empty without one."""
        return "_".join(choice.name for choice in self.choices)

    def part_of_point(self, sections: Iterable[str]) -> str:
        """The part of the point that changes any of these sections: what steps share that read only them."""
        wanted = set(sections)
        return "_".join(choice.name for choice in self.choices if choice.sections & wanted)


def make_cells(recipe: Recipe) -> list[Cell]:
    """Every target × variant of a recipe, in the order of the file."""
    return [Cell(target, variant, recipe=recipe) for target in recipe.targets for variant in recipe.variants_of(target)]


def select_cells(cells: Sequence[Cell], glob: str | None) -> list[Cell]:
    """The cells a glob such as `h100/*` names, with all their points; all cells without one.

    Raises UsageProblem with the nearest name when there is none.
    """
    if glob is None:
        return list(cells)
    chosen = [
        cell
        for cell in cells
        if any(fnmatch.fnmatchcase(name, glob) for name in (cell.name, f"{cell.target}/{cell.variant}", cell.target))
    ]
    if not chosen:
        names = [cell.name for cell in cells]
        raise UsageProblem(f"no cell of the recipe matches '{glob}'", fix=did_you_mean(glob, names))
    return chosen
