"""Paths of settings as people write them: `engine.limits.max_batch_size`, `targets."a.b".quantization[0]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from trtx.errors import did_you_mean, nearest
from trtx.recipe.lookup import fields_of, find_model, wants_list
from trtx.recipe.problems import Path
from trtx.recipe.tree import dotted

PART = re.compile(r'"(?P<quoted>[^"]*)"|\[(?P<index>[0-9]{1,6})\]|(?P<plain>[^.\[\]"=\s]+)')


class Step(NamedTuple):
    """One part of a path: a name, or an index where it stands in brackets; its column from 0, and its width."""

    part: str | int
    col: int
    width: int


class BadPath(Exception):
    """A text that is no path, or a path that leads nowhere; `col` from 0 and `width` say which part of it."""

    def __init__(self, what: str, col: int, width: int = 1, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.col, self.width, self.why, self.fix = col, width, why, fix


def read_path(text: str) -> tuple[list[Step], int]:
    """The parts of the path that a text begins with, and where it ends: at `=` or at the end of the text.

    Raises BadPath.
    """
    steps: list[Step] = []
    at = 0
    while at < len(text) and text[at] != "=":
        if steps and text[at] == ".":
            at += 1
        elif steps and text[at] != "[":
            raise BadPath("a path is names with dots between them", at, fix="write engine.limits.max_batch_size")
        match = PART.match(text, at)
        if match is None or (not steps and match["index"]):
            fix = 'a name that holds a dot, "=" or a space stands in double quotes'
            raise BadPath("a name is missing here", min(at, len(text) - 1), fix=fix)
        part = int(match["index"]) if match["index"] else match["plain"] or match["quoted"] or ""
        steps.append(Step(part, at, match.end() - at))
        at = match.end()
    if not steps:
        raise BadPath("the path of a setting is missing", 0, fix="write engine.limits.max_batch_size, for example")
    return steps, at


def settle(steps: Iterable[Step], data: Any, *, must_exist: bool = False) -> Path:
    """The path of a setting in plain data, with numbers as indexes where a list is or is wanted.

    What is missing will be made, so it leads on, except with `must_exist`. Raises BadPath.
    """
    path: Path = ()
    node, is_there = data, True
    for step in steps:
        part = _part(step, node, path, data)
        if isinstance(part, int):
            node = node if isinstance(node, list) else []
            is_there = part < len(node)
            if part > len(node) or (must_exist and not is_there):
                raise _no_item(step, path, len(node), must_exist)
            node = node[part] if is_there else None
        else:
            known = node if isinstance(node, dict) else {}
            is_there = part in known
            if must_exist and not is_there:
                fix = did_you_mean(part, known) if known else ""
                raise BadPath(f"there is no '{dotted((*path, part))}' here", step.col, step.width, fix=fix)
            node = known.get(part)
        path = (*path, part)
    return path


def _part(step: Step, node: Any, path: Path, data: Any) -> str | int:
    """What a step means at a value: an index of a list, or a key."""
    name = dotted(path)
    if isinstance(node, list) or (node is None and wants_list(path, data)):
        if isinstance(step.part, str) and not step.part.isdecimal():
            raise BadPath(f"{name} is a list", step.col, step.width, fix=f"write {name}[0] for its first item")
        return int(step.part)
    if node is not None and not isinstance(node, dict):
        why, fix = "", ""
        if isinstance(node, str) and "${" in node:
            why, fix = f"it is {node}, and variables come after changes", "change the variable itself"
        raise BadPath(f"{name} has no settings inside", step.col, step.width, why=why, fix=fix)
    if isinstance(step.part, int):
        raise BadPath(f"{name} is not a list", step.col, step.width, fix=f"write {name}.NAME for a setting in it")
    return step.part


def _no_item(step: Step, path: Path, size: int, must_exist: bool) -> BadPath:
    what = f"{dotted(path)} has {size} item{'s' if size != 1 else ''}, counted from 0"
    fix = "" if must_exist else f"[{size}] adds one"
    return BadPath(what, step.col, step.width, fix=fix)


def check_known(steps: list[Step], path: Path, data: Any) -> None:
    """Refuse a path that the language does not have. Raises BadPath with the nearest name."""
    from trtx.recipe.lookup import find_spot

    for length, step in enumerate(steps, 1):
        if find_spot(path[:length], data) is None:
            model = find_model(path[: length - 1], data)
            word = str(step.part)
            known = fields_of(model) if model else {}
            fix = did_you_mean(word, known) if nearest(word, known) or len(known) < 12 else ""
            where = f" in {dotted(path[: length - 1])}" if length > 1 else ""
            raise BadPath(f"there is no setting '{word}'{where}", step.col, step.width, fix=fix)
