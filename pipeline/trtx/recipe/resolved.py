"""A loaded recipe as plain data and as YAML that loads again: bases merged, variables replaced, defaults filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from trtx.recipe.graft import paths_in
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.lookup import fields_of, value_at
from trtx.recipe.parts import Part
from trtx.recipe.problems import Path
from trtx.recipe.schema import AS_STORED

# Lists that are longer stand one item a line.
MAX_FLOW_WIDTH = 100
# Comments stand in one column, but not further right than this; those of longer lines stand at their end.
MAX_COMMENT_COLUMN = 72


def resolve_data(loaded: LoadedRecipe) -> dict[str, Any]:
    """One point of a recipe as plain data, in the order of the schema; with all defaults that it may state.

    Stated values are as they were written, so that sizes keep their units. Settings without a value are left out, and
    so are the defaults of `unstated_defaults`.
    """
    data: dict[str, Any] = _plain(loaded.recipe, (), loaded)
    for path in unstated_defaults(loaded):
        del value_at(path[:-1], data)[path[-1]]
        if not value_at(path[:-1], data) and path[:-1] not in loaded.tree.places:
            del value_at(path[:-2], data)[path[-2]]
    return data


def unstated_defaults(loaded: LoadedRecipe) -> dict[Path, str]:
    """Defaults that a file must not state, with the reason: stated, they would mean something else or nothing."""
    recipe = loaded.recipe
    found: dict[Path, str] = {}
    if not recipe.model.source.startswith("hf://"):
        found["model", "revision"] = f"{recipe.model.revision} by default, but only hf:// sources have revisions"
    cache = recipe.engine.kv_cache
    if cache.size is not None:
        found["engine", "kv_cache", "memory_fraction"] = f"{cache.memory_fraction} by default, without a size"
    for name, variant in recipe.quantization.items():
        if variant.algorithm in ("none", AS_STORED):
            found["quantization", name, "exclude"] = "nothing is quantized, so there is nothing to exclude"
        length = variant.calibration.max_length
        found["quantization", name, "calibration", "max_length"] = f"{length} by default, or what the model allows"
    for name, runner in recipe.runners.items():
        for path in paths_in(_plain(runner, ("runners", name), loaded), ("runners", name)):
            default = value_at(path[2:], runner.model_dump())
            if default is not None and not isinstance(default, dict):
                shown = f"{_shown(default)}{'s' if path[-1] == 'warn' else ''}"
                found[path] = f"{shown} by default, or what the site's configuration says"
    return {path: reason for path, reason in found.items() if path not in loaded.tree.places}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def leaf_origins(loaded: LoadedRecipe, data: Mapping[str, Any]) -> dict[Path, str]:
    """The origin of every value of plain data that is no mapping and no list, unless it is empty."""
    values = ((path, value_at(path, data)) for path in paths_in(data, ()))
    return {path: str(loaded.origin(path)) for path, value in values if not isinstance(value, dict | list) or not value}


def _plain(value: Any, path: Path, loaded: LoadedRecipe) -> Any:
    if isinstance(value, Part):
        fields = {key: getattr(value, name) for key, name in _names(type(value))}
        made = {key: _plain(inner, (*path, key), loaded) for key, inner in fields.items() if inner is not None}
        # An override or a table that nobody states says nothing.
        return {key: inner for key, inner in made.items() if inner != {} or (*path, key) in loaded.tree.places}
    if isinstance(value, dict):
        return {key: _plain(inner, (*path, key), loaded) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner, (*path, index), loaded) for index, inner in enumerate(value)]
    return value_at(path, loaded.tree.data) if path in loaded.tree.places else value


def _names(model: type[Part]) -> Iterator[tuple[str, str]]:
    return zip(fields_of(model), model.model_fields, strict=True)


@dataclass
class _Line:
    text: str
    comment: str = ""


def to_yaml(
    data: Mapping[str, Any], origins: Mapping[Path, str] | None = None, notes: Mapping[Path, str] | None = None
) -> str:
    """Plain data as YAML that the recipe language reads back to the same values.

    `origins` stand as comments at the end of the lines of their values; `notes` are whole lines of comment, put at the
    end of the mapping that their path leads into.
    """
    lines = list(_Writer(origins, notes or {}).mapping(data, ()))
    widths = (len(line.text) for line in lines if line.comment)
    column = max((width for width in widths if width <= MAX_COMMENT_COLUMN), default=0)
    return "".join(
        f"{line.text.ljust(column)}  # {line.comment}\n" if line.comment else f"{line.text}\n" for line in lines
    )


class _Writer:
    def __init__(self, origins: Mapping[Path, str] | None, notes: Mapping[Path, str]) -> None:
        self.origins = origins
        self.notes = notes

    def mapping(self, data: Mapping[str, Any], path: Path) -> Iterator[_Line]:
        for key, value in data.items():
            yield from self.entry(f"{_scalar(key)}:", value, (*path, key))
        for place, note in self.notes.items():
            if place[:-1] == path:
                yield _Line(f"# {place[-1]}: {note}")

    def entry(self, head: str, value: Any, path: Path) -> Iterator[_Line]:
        """A value after its key, or after the dash of a list."""
        flow = self.flow(value)
        if flow is not None:
            yield _Line(f"{head} {flow}", self.comment(path))
        elif isinstance(value, dict):
            yield from _below(head, self.mapping(value, path))
        else:
            yield _Line(head)
            for index, item in enumerate(value):
                for line in self.entry("-", item, (*path, index)):
                    yield _Line(f"  {line.text}", line.comment)

    def flow(self, value: Any) -> str | None:
        """A value on one line; None when it takes more."""
        if not isinstance(value, dict | list):
            return _scalar(value)
        if not value:
            return "{}" if isinstance(value, dict) else "[]"
        if isinstance(value, dict) or self.origins is not None or any(isinstance(item, dict | list) for item in value):
            return None
        text = _dump([_escape(item) for item in value], default_flow_style=True)
        return text if len(text) <= MAX_FLOW_WIDTH else None

    def comment(self, path: Path) -> str:
        return " ".join((self.origins or {}).get(path, "").split())


def _below(head: str, lines: Iterator[_Line]) -> Iterator[_Line]:
    """A mapping under its key, or beside the dash of a list."""
    if head != "-":
        yield _Line(head)
    for number, line in enumerate(lines):
        lead = "- " if head == "-" and not number else "  "
        yield _Line(lead + line.text, line.comment)


def _scalar(value: Any) -> str:
    value = _escape(value)
    style = '"' if isinstance(value, str) and "\n" in value else None
    return _dump(value, default_style=style).removesuffix("...").rstrip()


def _escape(value: Any) -> Any:
    return value.replace("${", "$${") if isinstance(value, str) else value


def _dump(value: Any, **style: Any) -> str:
    return str(yaml.safe_dump(value, width=1 << 30, allow_unicode=True, **style)).strip()
