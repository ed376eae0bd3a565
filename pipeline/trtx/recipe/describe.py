"""The recipe language as JSON Schema (2020-12), for editors such as those with yaml-language-server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from trtx.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID = "urn:trtx:schema:recipe:v1"


class _Generator(GenerateJsonSchema):
    """Without null, which no recipe may hold, and with descriptions beside references."""

    schema_dialect = DIALECT

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            del made["default"]
        return made


def make_json_schema(devices: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON Schema of `trtx/v1`; `devices` are offered by editors as values of `gpu`."""
    schema = Recipe.model_json_schema(by_alias=True, schema_generator=_Generator)
    _tidy(schema)
    names = list(devices)
    if names:
        schema["$defs"]["Target"]["properties"]["gpu"]["examples"] = names
    return {"$schema": DIALECT, "$id": ID, "title": "trtx recipe", **schema}


def _tidy(node: Any) -> None:
    """Drop titles, which repeat the key, and refuse keys of free-name mappings that match no name."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for inner in node.values():
            _tidy(inner)
    elif isinstance(node, list):
        for inner in node:
            _tidy(inner)
