"""What differs between two locks, by meaning. Pure functions."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.plan.lock import Lock

# Section → what one of its items is called. The order is the one to read them in: causes before effects.
WORDS = {
    "models": "model",
    "datasets": "dataset",
    "containers": "container",
    "probes": "probe",
    "runners": "tools",
    "stages": "stage",
    "benchmark": "benchmark client",
    "builds": "build",
    "entries": "step",
}
# What a bare value of a section is.
VALUES = {"stages": "code", "entries": "key", "probes": "sha256"}


@dataclass(frozen=True)
class LockChange:
    """One difference. `part` is the place inside the item, "" for all of it; None stands for absent."""

    section: str
    name: str
    part: str
    old: str | int | None
    new: str | int | None

    @property
    def subject(self) -> str:
        return f"{WORDS[self.section]} {self.name}".rstrip()

    def __str__(self) -> str:
        if not self.part:
            return f"{self.subject} {'was not in the lock' if self.old is None else 'is not used any more'}"
        if self.old is None:
            return f"{self.subject}: {self.part} {_short(self.new)}, which the lock did not have"
        if self.new is None:
            return f"{self.subject}: {self.part} {_short(self.old)} is gone"
        return f"{self.subject}: {self.part} {_short(self.old)} → {_short(self.new)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "part": self.part,
            "old": self.old,
            "new": self.new,
            "text": str(self),
        }


def compare_locks(old: Lock | None, new: Lock, ignored: Container[str] = frozenset()) -> list[LockChange]:
    """Every difference, causes first. `ignored` are ids of steps whose keys are not compared."""
    before = old.to_data() if old else {}
    after = new.to_data()
    return [
        change
        for section in WORDS
        for change in _compare_section(section, _items(section, before), _items(section, after))
        if section != "entries" or change.name not in ignored
    ]


def _items(section: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The items of a section by name; the benchmark client is one item without a name."""
    found: dict[str, Any] = data.get(section, {})
    return {"": found} if section == "benchmark" and found else found


def _compare_section(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[LockChange]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            there = "present"
            yield LockChange(section, name, "", there if name in old else None, there if name in new else None)
            continue
        before, after = old[name], new[name]
        if not isinstance(after, dict):
            before, after = {VALUES[section]: before}, {VALUES[section]: after}
        yield from _compare_parts(section, name, before, after)


def _compare_parts(
    section: str, name: str, old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[LockChange]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        part = f"{prefix} {key}".lstrip()
        if before == after or (section, part) == ("builds", "key"):  # The step says so.
            continue
        if isinstance(before, dict) and isinstance(after, dict) and before and after and "sha256" not in after:
            yield from _compare_parts(section, name, before, after, part)
        else:
            yield LockChange(section, name, part, _describe(before), _describe(after))


def _describe(value: Any) -> str | int | None:
    """A value as one word or two; a file by its content, a group by its size."""
    if isinstance(value, dict):
        if "sha256" in value:
            return f"sha256:{value['sha256']}"
        return f"({len(value)} of them)" if value else None
    return value if value is None or type(value) is int else str(value)


def _short(value: str | int | None) -> str:
    """Digests and commits by their beginning: a message identifies nothing."""
    text = str(value)
    scheme, colon, digest = text.rpartition(":")
    is_digest = len(digest) in (40, 64) and set(digest) <= set("0123456789abcdef")
    if is_digest:
        return f"{scheme}{colon}{digest[:12]}…"
    return text if len(text) <= 60 else text[:59] + "…"
