"""Where each value of a recipe comes from."""

from __future__ import annotations

from dataclasses import dataclass

from trtx.recipe.problems import Kind, Place


@dataclass(frozen=True)
class Origin:
    """Where a value comes from.

    `where` is `recipe.yaml:12:5`, `--set engine.dtype=float32` or `default`; `note` names the references that led
    there. Values of environment variables are never part of either.
    """

    kind: Kind
    where: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.where}, {self.note}" if self.note else self.where


def origin_of(place: Place | None, removed: str = "") -> Origin:
    """The origin of the value at a place; the default without one, and `removed` says who took a value away."""
    if place is None:
        return Origin("default", "default", removed)
    return Origin(place.kind, place.where, place.note)
