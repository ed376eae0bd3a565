"""Where in the language a path of a file leads: which field, which model, which keys may stand there."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from trtx.recipe.document import Document
from trtx.recipe.parts import Part
from trtx.recipe.problems import Path
from trtx.recipe.schema import Recipe


class Spot(NamedTuple):
    """The type at a path, and the field it belongs to; for an item of a list or table, the field that holds it."""

    annotation: Any
    field: FieldInfo | None


def fields_of(model: type[Part]) -> dict[str, FieldInfo]:
    """Fields by the name they have in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def find_spot(path: Path, data: Any) -> Spot | None:
    """What the language has at a path of a file; None where it has nothing. `data` decides between alternatives."""
    spot = Spot(Document, None)
    for part in path:
        inner = next(_children(spot, part, data), None)
        if inner is None:
            return None
        spot, data = inner, value_at((part,), data)
    return spot


def wants_text(path: Path, data: Any) -> bool:
    """Whether the language has a text at a path, so that what stands there needs no quotes to be one."""
    spot = find_spot(path, data)
    for option in alternatives(spot.annotation) if spot else ():
        if option is str or (get_origin(option) is Literal and isinstance(get_args(option)[0], str)):
            return True
    return False


def wants_list(path: Path, data: Any) -> bool:
    """Whether the language has a list at a path."""
    spot = find_spot(path, data)
    return spot is not None and any(get_origin(option) is tuple for option in alternatives(spot.annotation))


def wants_names(path: Path, data: Any) -> bool:
    """Whether the language has a mapping with free names at a path."""
    spot = find_spot(path, data)
    return spot is not None and any(get_origin(option) is dict for option in alternatives(spot.annotation))


def find_model(path: Path, data: Any) -> type[Part] | None:
    """The model of the mapping at a path; None where the language has none."""
    spot = find_spot(path, data)
    return next(_models(spot.annotation, value_at(path, data)), None) if spot else None


def find_key(name: str, model: type[Part] = Recipe, path: Path = ()) -> Iterator[Path]:
    """Every path at which the language has a key, with `*` for free names and list indexes."""
    for key, field in fields_of(model).items():
        if key == name:
            yield (*path, key)
        for option in alternatives(field.annotation):
            items = get_args(option) if get_origin(option) in (dict, tuple) else ()
            star: Path = ("*",) if items else ()
            for inner in _models(items[0 if get_origin(option) is tuple else 1] if items else option, None):
                yield from find_key(name, inner, (*path, key, *star))


def value_at(path: Path, data: Any) -> Any:
    """The value at a path of plain data; None where there is none."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types an annotation allows, without None and without constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for option in get_args(annotation):
            yield from alternatives(option)
    elif annotation is not type(None):
        yield annotation


def _models(annotation: Any, data: Any) -> Iterator[type[Part]]:
    """The models among the alternatives; of those told apart by `type`, the one that the data names."""
    for option in alternatives(annotation):
        if isinstance(option, type) and issubclass(option, Part):
            tag = option.model_fields.get("type")
            named = data.get("type") if isinstance(data, dict) else None
            if tag is None or named is None or named in get_args(tag.annotation):
                yield option


def _children(spot: Spot, part: str | int, data: Any) -> Iterator[Spot]:
    for option in alternatives(spot.annotation):
        if get_origin(option) is dict:
            yield Spot(get_args(option)[1], spot.field)
        elif get_origin(option) is tuple and isinstance(part, int):
            yield Spot(get_args(option)[0], spot.field)
    for model in _models(spot.annotation, data):
        field = fields_of(model).get(str(part))
        if field is not None:
            yield Spot(field.annotation, field)
