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
    """A path, with `*` for a free name or a list index, and which of its values are refused."""

    path: Path
    refuses: Callable[[Any], bool]
    fix: str


def _among(*values: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in values


def _more_than_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def _any(value: Any) -> bool:
    return True


def _rule(path: str, refuses: Callable[[Any], bool], fix: str) -> Unavailable:
    return Unavailable(tuple(path.split(".")), refuses, fix)


ENGINE_RULES = (
    _rule("engine.backend", _among("tensorrt-llm"), "use inductor"),
    _rule("engine.dtype", _among("float16"), "use bfloat16, which is faster, or float32"),
)

RULES: tuple[Unavailable, ...] = (
    *ENGINE_RULES,
    *(Unavailable(("targets", "*", *rule.path), rule.refuses, rule.fix) for rule in ENGINE_RULES),
    _rule("targets.*.parallelism.tensor", _more_than_one, "use 1: an engine runs in one process"),
    _rule("targets.*.parallelism.pipeline", _more_than_one, "use 1: an engine runs in one process"),
    _rule("gates", _any, "leave the gates out and read benchmark.json"),
    _rule("package.emit.*", _among("kubernetes"), "use compose or triton"),
)


def find_unavailable(data: Mapping[str, Any]) -> Iterator[tuple[Path, Any, str]]:
    """Every refused value that a recipe's plain data holds: its path, the value, the fix."""
    for rule in RULES:
        for path, value in _matches(data, rule.path):
            if rule.refuses(value):
                yield path, value, rule.fix


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
