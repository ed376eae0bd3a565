"""What comparing an engine with a rebuild of it found, and the verdict that follows. Imports no torch."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trtx.files import sha256_file, walk_files

Verdict = Literal["bit-identical", "same choices", "equal within a bound", "differs"]
# From best to worst.
VERDICTS: tuple[Verdict, ...] = ("bit-identical", "same choices", "equal within a bound", "differs")


class _Part(BaseModel):
    # A figure that is not a number is told, and no JSON of its own.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Compared(_Part):
    """So many things were compared; `different` says of each that differs what it is, and how where it is short."""

    count: int
    different: tuple[str, ...] = ()


class Outputs(_Part):
    """Both engines' logits after the same `sequences` of `tokens` tokens each, over the same weights.

    `largest` is the largest difference of two logits, `distance` the L2 norm of all differences by that of the entry's
    logits, which is held against `bound`; `mismatches` counts positions of generated tokens whose most likely token is
    another one.
    """

    sequences: int
    tokens: int
    largest: float
    distance: float
    bound: float
    mismatches: int

    @property
    def is_equal(self) -> bool:
        """Whether they are equal within the bound; what is not a number is not."""
        return self.distance <= self.bound and self.mismatches == 0


class Comparison(_Part):
    """An entry and its rebuild: files by their bytes, choices of the compiler, records of what was measured, outputs.

    `choices`, `records` and `outputs` are None where a backend's engines do not tell them.
    """

    files: Compared
    choices: Compared | None = None
    records: Compared | None = None
    outputs: Outputs | None = None

    @property
    def verdict(self) -> Verdict:
        """The best that can be said."""
        if self.outputs is not None and not self.outputs.is_equal:
            return "differs"
        if not self.files.different:
            return "bit-identical"
        if self.outputs is None:
            return "differs"
        parts = (self.choices, self.records)
        if all(part is not None and not part.different for part in parts):
            return "same choices"
        return "equal within a bound"


def compare_files(entry: Path, rebuilt: Path, ignored: Container[str] = ()) -> Compared:
    """Every file of two folders byte for byte, by its path in them, but for the `ignored` ones."""
    before, after = (
        {path.relative_to(folder).as_posix(): path for path in walk_files(folder)} for folder in (entry, rebuilt)
    )
    names = sorted(name for name in before.keys() | after.keys() if name not in ignored)
    different = []
    for name in names:
        if name not in after:
            different.append(f"{name} was not made again")
        elif name not in before:
            different.append(f"{name} is new")
        elif sha256_file(before[name]) != sha256_file(after[name]):
            different.append(name)
    return Compared(count=len(names), different=tuple(different))


def compare_values(entry: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> Compared:
    """Two flat mappings by name."""
    names = sorted(entry.keys() | rebuilt.keys())
    different = [
        f"{name}: {_show(entry, name)} → {_show(rebuilt, name)}"
        for name in names
        if (name in entry, entry.get(name)) != (name in rebuilt, rebuilt.get(name))
    ]
    return Compared(count=len(names), different=tuple(different))


def flatten(groups: Any, prefix: str = "") -> dict[str, Any]:
    """Every value that is no mapping, by the names that lead to it."""
    if not isinstance(groups, dict):
        return {prefix: groups}
    flat: dict[str, Any] = {}
    for name, member in groups.items():
        flat |= flatten(member, f"{prefix}.{name}" if prefix else name)
    return flat


def worst(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The worst of some verdicts; None of none."""
    return max(verdicts, key=VERDICTS.index, default=None)


def _show(values: Mapping[str, Any], name: str) -> str:
    text = str(values[name]) if name in values else "(none)"
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"
