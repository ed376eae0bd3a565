"""Overrides: a model with every field optional, and how it is put over a whole one."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field, create_model

from trtx.recipe.parts import Part

Config = TypeVar("Config", bound=Part)


def make_partial(cls: type[Part]) -> type[Part]:
    """The same model with every field optional, down to its nested models: what an override may say.

    An unset field keeps its type, so that `null` is refused; read overrides with `model_fields_set`.
    """
    fields: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Part)
        kind = make_partial(field.annotation) if nested else field.rebuild_annotation()  # type: ignore[arg-type]
        fields[name] = (kind, Field(default=None, description=field.description))
    return create_model(f"{cls.__name__}Override", __base__=Part, __doc__=cls.__doc__, **fields)


def merge(base: Config, override: Part) -> Config:
    """`base` with the set fields of a partial model over it; nested models and mappings merge, the rest replaces."""
    changes: dict[str, Any] = {}
    for name in override.model_fields_set:
        value, old = getattr(override, name), getattr(base, name)
        if isinstance(old, Part) and isinstance(value, Part):
            value = merge(old, value)
        elif isinstance(old, dict) and isinstance(value, dict):
            value = {**old, **value}
        changes[name] = value
    return base.model_copy(update=changes)
