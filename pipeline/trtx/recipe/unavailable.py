"""What the language has and this version of trtx cannot do. Each is refused by name; nothing is ever ignored.

A new ability removes its line here and nothing else in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.recipe.problems import Path


@dataclass(frozen=True)
class Unavailable:
    """A path, with `*` for a free name or a list index, and which of its values are refused.

    `backend` limits it to recipes, or targets, with that backend.
    """

    path: Path
    refuses: Callable[[Any], bool]
    fix: str
    backend: str | None = None


def _among(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


def _more_than_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def _any(value: Any) -> bool:
    return True


def _rule(path: str, refuses: Callable[[Any], bool], fix: str, backend: str | None = None) -> Unavailable:
    return Unavailable(tuple(path.split(".")), refuses, fix, backend)


EMBEDDED = "inductor"

RULES: tuple[Unavailable, ...] = (
    *(
        _rule(path, _among("float16"), "use bfloat16, which is faster on CPUs, or float32", EMBEDDED)
        for path in ("engine.dtype", "targets.*.engine.dtype")
    ),
    _rule(
        "targets.*.parallelism.pipeline",
        _more_than_one,
        "use 1, and more tensor ranks: they share each layer of one host's devices",
        EMBEDDED,
    ),
    _rule("gates", _any, "leave the gates out and read benchmark.json"),
    _rule("package.emit.*", _among("kubernetes"), "use compose or triton"),
)


def find_unavailable(data: Mapping[str, Any]) -> Iterator[tuple[Path, Any, str]]:
    """Every refused value that a recipe's plain data holds: its path, the value, the fix."""
    for rule in RULES:
        for path, value in _matches(data, rule.path):
            if rule.refuses(value) and (rule.backend is None or rule.backend in backends_at(data, path)):
                yield path, value, rule.fix


def backends_at(data: Mapping[str, Any], path: Path) -> set[str]:
    """The backends that a setting is about: its target's, or for one of the recipe those of all targets."""
    targets = data.get("targets")
    if not isinstance(targets, dict):
        return {EMBEDDED}
    names = [path[1]] if path[0] == "targets" and len(path) > 1 else list(targets)
    return {_backend(targets[name]) or _backend(data) or EMBEDDED for name in names}


def _backend(data: Any) -> str | None:
    """The backend that a recipe or a target states in its engine."""
    engine = data.get("engine") if isinstance(data, dict) else None
    stated = engine.get("backend") if isinstance(engine, dict) else None
    return stated if isinstance(stated, str) else None


def _matches(data: Any, pattern: Path, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if not pattern:
        yield path, data
        return
    head, rest = pattern[0], pattern[1:]
    if head == "*" and isinstance(data, list):
        for index, item in enumerate(data):
            yield from _matches(item, rest, (*path, index))
    elif isinstance(data, dict):
        for key in data if head == "*" else (head,):
            if key in data:
                yield from _matches(data[key], rest, (*path, key))
