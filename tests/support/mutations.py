"""Mutations of recipes for property tests: of their text, and of single values at known places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import strategies as st

Path = tuple[str | int, ...]

# What breaks YAML, paths, references and carets: signs of syntax, wide and combining letters, odd spaces, other breaks.
SIGNS = [*"{}[]:,-#&*!|>'\"%@`?$\\~=<.", "${", "}}", "$${", ": ", "- ", "<<: ", "---", "...", "null", "\t", "  "]
ODD = ["\u00e9", "\u4e2d", "\U0001f600", "e\u0301", "\u200b", "\ufeff", "\u2028", "\x85", "\xa0", "\r", "\x00", "\x1b"]
TEXTS = [
    "yes",
    "012",
    "1:30",
    ".inf",
    "1e3",
    "${vars.batch}",
    "${env.X:-1}",
    "${vars.nothing}",
    "${",
    "2GiB",
    "fp8",
    "x",
]


@st.composite
def garbled(draw: st.DrawFn, text: str, *, most: int = 3) -> str:
    """The text after one to `most` changes of characters, lines, indentation or size."""
    for _ in range(draw(st.integers(1, most))):
        text = draw(st.sampled_from(CHANGES))(draw, text)
    return text


def _at(draw: st.DrawFn, text: str) -> int:
    return draw(st.integers(0, len(text)))


def _delete(draw: st.DrawFn, text: str) -> str:
    start = _at(draw, text)
    return text[:start] + text[start + draw(st.integers(1, 12)) :]


def _duplicate(draw: st.DrawFn, text: str) -> str:
    start = _at(draw, text)
    end = start + draw(st.integers(1, 30))
    return text[:end] + text[start:end] + text[end:]


def _insert(draw: st.DrawFn, text: str) -> str:
    start = _at(draw, text)
    return text[:start] + draw(st.sampled_from(SIGNS + ODD + TEXTS)) + text[start:]


def _replace(draw: st.DrawFn, text: str) -> str:
    start = _at(draw, text)
    return text[:start] + draw(st.sampled_from(SIGNS + ODD) | st.characters()) + text[start + 1 :]


def _truncate(draw: st.DrawFn, text: str) -> str:
    return text[: _at(draw, text)]


def _delete_line(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    del lines[draw(st.integers(0, len(lines) - 1))]
    return "\n".join(lines)


def _swap_lines(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    one, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines)


def _repeat_line(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    number = draw(st.integers(0, len(lines) - 1))
    return "\n".join([*lines[:number], lines[number], *lines[number:]])


def _indent(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    number = draw(st.integers(0, len(lines) - 1))
    by = draw(st.sampled_from([" ", "  ", "\t", "-1"]))
    lines[number] = lines[number][1:] if by == "-1" else by + lines[number]
    return "\n".join(lines)


def _swap_values(draw: st.DrawFn, text: str) -> str:
    values = list(re.finditer(r"(?<=: )[^,{}\n#]+", text)) or list(re.finditer(r"\w+", text))
    if not values:
        return text
    one, other = (draw(st.sampled_from(values)) for _ in range(2))
    return text[: one.start()] + other[0] + text[one.end() :]


def _break_lines(draw: st.DrawFn, text: str) -> str:
    return text.replace("\n", draw(st.sampled_from(["\r\n", "\r"])))


CHANGES = [
    _delete,
    _duplicate,
    _insert,
    _insert,
    _replace,
    _truncate,
    _delete_line,
    _swap_lines,
    _repeat_line,
    _indent,
    _swap_values,
    _break_lines,
]

# Values that stand for every kind of plain data.
SCALARS = st.sampled_from([None, True, False, 0, -1, 1, 7, 10**40, 0.5, -2.5, "", "a b", "on", *TEXTS])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "gpu", "type", "x y"]), inner),
    max_leaves=4,
)


def paths_of(data: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value below the top."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from paths_of(value, (*path, key))


@st.composite
def regrown(draw: st.DrawFn, data: Any) -> Any:
    """The data after one to three values were replaced, or keys dropped, renamed or added."""
    for _ in range(draw(st.integers(1, 3))):
        paths = list(paths_of(data))
        if paths:
            path = draw(st.sampled_from(paths))
            data = _changed(draw, data, path)
    return data


def _changed(draw: st.DrawFn, node: Any, path: Path) -> Any:
    key, rest = path[0], path[1:]
    if rest:
        inner = _changed(draw, node[key], rest)
        return {**node, key: inner} if isinstance(node, dict) else [*node[:key], inner, *node[key + 1 :]]  # type: ignore[misc,operator]
    if isinstance(node, list):
        return draw(st.sampled_from([[*node, *node], node[:-1], [*node[:-1], draw(VALUES)]]))
    kept = {name: value for name, value in node.items() if name != key}
    how = draw(st.sampled_from(["value", "value", "value", "drop", "rename", "add"]))
    if how == "drop":
        return kept
    if how == "rename":
        return {**kept, draw(st.sampled_from([f"{key}x", "A B", "a.b", "", "engine"])): node[key]}
    return {**node, key if how == "value" else "extra": draw(VALUES)}


@dataclass(frozen=True)
class Leaf:
    """A scalar of a YAML text: where its own characters are, without an anchor, and where its key is."""

    path: Path
    value: Any
    start: int
    end: int
    line: int
    key_start: int | None
    is_flow: bool


def leaves_of(text: str) -> list[Leaf]:
    """Every scalar that stands on one line; those behind aliases and merges come once, where they are written."""
    found: dict[int, Leaf] = {}
    _walk(yaml.compose(text, Loader=yaml.SafeLoader), (), None, False, text, found)
    return list(found.values())


def _walk(node: Any, path: Path, key: Any, is_flow: bool, text: str, found: dict[int, Leaf]) -> None:
    if isinstance(node, yaml.MappingNode):
        for inner_key, value in node.value:
            if inner_key.tag != "tag:yaml.org,2002:merge":
                _walk(value, (*path, inner_key.value), inner_key, bool(node.flow_style), text, found)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), None, bool(node.flow_style), text, found)
    elif node.start_mark.line == node.end_mark.line:
        start, end = node.start_mark.index, node.end_mark.index
        start += len(re.match(r"(?:&\S+\s+)?", text[start:end])[0])  # type: ignore[index]
        value = yaml.safe_load(text[start:end])
        key_start = key.start_mark.index if key is not None else None
        found.setdefault(start, Leaf(path, value, start, end, node.start_mark.line + 1, key_start, is_flow))
