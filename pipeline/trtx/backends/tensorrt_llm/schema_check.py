"""Checks a configuration against the classes of a release as its tables have them: keys, types, choices, nested ones.

TensorRT-LLM's own classes refuse unknown keys, so what is found here is what the server would refuse.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.surface import Field, Schema
from trtx.errors import did_you_mean

PLAIN: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "Path": str,
    "dict": dict,
    "list": list,
}
# A class of decoding is chosen by this key: tensorrt_llm/llmapi/llm_args.py.
DISCRIMINATOR = "decoding_type"


@dataclass(frozen=True)
class Finding:
    """One thing about a key, by its dotted path. `doubt` says that the table is not sure; else it is refused there."""

    path: str
    message: str
    doubt: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def check_schema(release: Release, name: str, data: Mapping[str, Any], path: str = "") -> tuple[Finding, ...]:
    """Everything about a mapping that a class of the release would refuse, and what is not established."""
    return tuple(_check_class(release, name, data, path))


def _check_class(release: Release, name: str, data: Any, path: str) -> Iterator[Finding]:
    if not isinstance(data, dict):
        yield Finding(path or name, f"is {_kind(data)}, and {name} is a mapping")
        return
    fields = release.schema_fields(name)
    known = {spelling: field for field in fields.values() for spelling in (field.name, *field.aliases)}
    for key, value in data.items():
        place = f"{path}.{key}" if path else str(key)
        field = known.get(key)
        if field is None:
            if key == DISCRIMINATOR:
                continue
            message = f"{name} of TensorRT-LLM {release.version} has no such key; {did_you_mean(str(key), known)}"
            yield Finding(place, message, doubt=not release.is_closed(name))
            continue
        yield from _check_field(release, field, value, place)
    for field in fields.values():
        if field.required and not {field.name, *field.aliases} & data.keys():
            yield Finding(f"{path}.{field.name}" if path else field.name, "is required")


def _check_field(release: Release, field: Field, value: Any, place: str) -> Iterator[Finding]:
    if field.confidence == "unknown":
        yield Finding(place, f"whether TensorRT-LLM {release.version} has it is not established", doubt=True)
    found = list(_check_type(release, _parse(field.type), value, place))
    yield from found
    if found or isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high, above = field.minimum, field.maximum, field.exclusive_minimum
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        bounds = ", ".join(
            f"{word} {bound:g}" for word, bound in (("≥", low), (">", above), ("≤", high)) if bound is not None
        )
        yield Finding(place, f"is {value}, and must be {bounds}")


def _parse(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None


def _check_type(release: Release, node: ast.expr | None, value: Any, place: str) -> Iterator[Finding]:
    if isinstance(node, ast.Subscript):
        yield from _check_generic(release, node, value, place)
    elif isinstance(node, ast.Constant) and node.value is None:
        if value is not None:
            yield Finding(place, f"is {_kind(value)}, and must be null")
    elif isinstance(node, ast.Name | ast.Attribute | ast.Constant):
        yield from _check_name(release, _name_of(node), value, place)
    elif isinstance(node, ast.BinOp):
        yield from _check_union(release, [node.left, node.right], value, place)


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else str(getattr(node, "value", ""))


def _check_generic(release: Release, node: ast.Subscript, value: Any, place: str) -> Iterator[Finding]:
    outer = _name_of(node.value).lower()
    inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "optional":
        if value is not None:
            yield from _check_type(release, inner[0], value, place)
    elif outer == "union":
        yield from _check_union(release, inner, value, place)
    elif outer == "literal":
        choices = [getattr(each, "value", None) for each in inner]
        if value not in choices:
            yield Finding(place, f"is {value!r}, and must be one of {', '.join(map(repr, choices))}")
    elif outer in ("list", "set", "tuple", "sequence"):
        yield from _check_items(release, inner[0], value, place)
    elif outer == "dict" and not isinstance(value, dict):
        yield Finding(place, f"is {_kind(value)}, and must be a mapping")


def _check_items(release: Release, inner: ast.expr, value: Any, place: str) -> Iterator[Finding]:
    if not isinstance(value, list):
        yield Finding(place, f"is {_kind(value)}, and must be a list")
        return
    for index, each in enumerate(value):
        yield from _check_type(release, inner, each, f"{place}[{index}]")


def _check_union(release: Release, members: list[ast.expr], value: Any, place: str) -> Iterator[Finding]:
    """Nothing when one member takes the value, else what the most fitting one says."""
    answers = [list(_check_type(release, member, value, place)) for member in members]
    if all(any(not found.doubt for found in answer) for answer in answers):
        yield from min(answers, key=len)


def _check_name(release: Release, name: str, value: Any, place: str) -> Iterator[Finding]:
    if name in PLAIN:
        wanted = PLAIN[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and name in ("int", "float")):
            yield Finding(place, f"is {_kind(value)}, and must be {_article(name)}")
        return
    if name == "SpeculativeConfig":
        yield from _check_decoding(release, value, place)
        return
    schema = release.schemas.get(name)
    if schema is None:
        return
    if schema.members is not None:
        yield from _check_member(schema, value, place)
    else:
        yield from _check_class(release, name, value, place)


def _check_member(schema: Schema, value: Any, place: str) -> Iterator[Finding]:
    members = [word for member in schema.members or () for word in member]
    if value not in members:
        names = ", ".join(str(member[0]) for member in schema.members or ())
        yield Finding(place, f"is {value!r}, and {schema.name} is one of {names}")


def _check_decoding(release: Release, value: Any, place: str) -> Iterator[Finding]:
    """A class chosen by its `decoding_type`."""
    if value is None:
        return
    classes = {schema.discriminator: name for name, schema in release.schemas.items() if schema.discriminator}
    kind = value.get(DISCRIMINATOR) if isinstance(value, dict) else None
    if kind is None:
        yield Finding(place, f"needs a {DISCRIMINATOR}, one of {', '.join(sorted(classes))}")
    elif kind not in classes:
        yield Finding(f"{place}.{DISCRIMINATOR}", f"there is no {kind!r}; {did_you_mean(str(kind), classes)}")
    else:
        yield from _check_class(release, classes[kind], value, place)


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a mapping",
        list: "a list",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _article(name: str) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "dict": "a mapping",
        "list": "a list",
    }
    return words.get(name, "text")
