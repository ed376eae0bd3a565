"""The file language as JSON Schema (2020-12), for editors such as those with yaml-language-server.

What the models cannot say is added to what pydantic generates: any value may be `${vars.NAME}` or `${env.NAME}`, and a
file that `extends` others may leave out what they say, and delete with null.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from trtx.recipe.document import Document
from trtx.recipe.matrix import CELL_KEYS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID = "urn:trtx:schema:recipe:v1"

# A reference as trtx.recipe.template reads it; a default may hold references of its own, two deep at most here.
_DEFAULT = r"([^{}]|\{([^{}]|\{[^{}]*\})*\})*"
_REFERENCE = rf"\$\{{(vars(\.[^.\s{{}}:$]+)+|env\.[A-Za-z_][A-Za-z0-9_]*(:-{_DEFAULT})?)\}}"
# A value that is exactly one reference becomes one of any type; one beside other text makes a text.
WHOLE = f"^{_REFERENCE}$"
WITHIN = f"(^|[^$]){_REFERENCE}"
NO_REFERENCE = r"^(?![\s\S]*\$\{)"
# Every `${` of a text is a reference or escaped.
TEXT = rf"^([^$]|\$(?!\{{)|\$\$\{{|{_REFERENCE})*$"
RELATIVE = r"^(?![/~])(?![\s\S]*(://|\$\{))"
VARYING = r"^(?!\"?(schema|name|extends|matrix)(\W|$))"

# `$ref` beside other keywords adds to them in this dialect; patterns look at texts only.
SHARED: dict[str, dict[str, Any]] = {
    "reference": {"type": "string", "pattern": WITHIN},
    "value": {"pattern": WHOLE, "patternErrorMessage": "neither of the type shown here nor one ${vars.…} or ${env.…}"},
    "whole": {"type": "string", "$ref": "#/$defs/value"},
    "filled": {
        "$comment": "No null anywhere: without `extends` there is nothing to delete.",
        "type": ["object", "array", "string", "number", "boolean"],
        "pattern": TEXT,
        "patternErrorMessage": "a reference is ${vars.NAME}, ${env.NAME} or ${env.NAME:-default}; $${ is a plain ${",
        "additionalProperties": {"$ref": "#/$defs/filled"},
        "items": {"$ref": "#/$defs/filled"},
    },
    "partial": {
        "$comment": "With `extends`, null deletes a key; lists are replaced whole.",
        "pattern": TEXT,
        "additionalProperties": {"$ref": "#/$defs/partial"},
        "items": {"$ref": "#/$defs/filled"},
    },
}
# Sections that are read before references are replaced, so that they hold none.
EARLY = ("Matrix", "Axis")


More = Literal["null", "reference"]


class _Generator(GenerateJsonSchema):
    """Optional fields without null, and defaults only where they say something."""

    schema_dialect = DIALECT

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", ...) in (None, {}):
            del made["default"]
        return made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        # `oneOf` would refuse what fits several of them, such as a type that is a reference.
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}


def make_json_schema(devices: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON Schema of recipe files in `trtx/v1`; `devices` are offered by editors as values of `gpu`."""
    made = make_plain_schema()
    definitions = made.pop("$defs")
    complete = _requirements(made, definitions)
    matrix = complete["properties"].pop("matrix")
    _tidy([made, definitions])
    for name, definition in definitions.items():
        _open_section(definition, "null" if name in EARLY else "reference")
    for name, node in made["properties"].items():
        if name not in ("schema", "extends"):
            _open(node, "null" if name == "vars" else "reference")
    _narrow(made, definitions)
    names = list(devices)
    if names:
        definitions["Target"]["properties"]["gpu"]["examples"] = names
    return {
        "$schema": DIALECT,
        "$id": ID,
        "title": "trtx recipe",
        **made,
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/partial"},
        "else": {
            "$ref": "#/$defs/filled",
            "if": {"required": ["matrix"]},
            # An axis may give what the rest of the file leaves out.
            "then": {"required": ["schema", "name"], "properties": {"matrix": matrix}},
            "else": {"$ref": "#/$defs/complete"},
        },
        "$defs": {**SHARED, "complete": complete, **definitions},
    }


def make_plain_schema() -> dict[str, Any]:
    """What the models say by themselves: the language of a file that holds no references and stands alone."""
    return Document.model_json_schema(by_alias=True, schema_generator=_Generator)


def _requirements(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What must be there, and only that: taken out of the schema, since a file that extends another is free of it."""
    if "$ref" in node:
        return _requirements(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        found = [_requirements(option, definitions) for option in node["anyOf"]]
        common = [key for key in found[0].get("required", []) if all(key in one.get("required", []) for one in found)]
        inner = {name: made for one in found for name, made in one.get("properties", {}).items()}
    else:
        common = node.get("required", [])
        made_of = {name: _requirements(value, definitions) for name, value in node.get("properties", {}).items()}
        inner = {name: made for name, made in made_of.items() if made}
    needs: dict[str, Any] = {"required": common} if common else {}
    if inner:
        needs["properties"] = inner
    for value in node.get("patternProperties", {}).values():
        if item := _requirements(value, definitions):
            needs["additionalProperties"] = item
    if "items" in node and (item := _requirements(node["items"], definitions)):
        needs["items"] = item
    return needs


def _tidy(node: Any) -> None:
    """Drop titles, which repeat the key, and `required`; refuse keys of free-name mappings that match no name."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        if isinstance(node.get("required"), list):
            del node["required"]
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for inner in node.values():
            _tidy(inner)
    elif isinstance(node, list):
        for inner in node:
            _tidy(inner)


def _narrow(made: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Rules about files and axes that trtx.recipe.extend and trtx.recipe.matrix have in code."""
    one, many, *_ = made["properties"]["extends"]["anyOf"]
    for node in (one, many["items"]):
        node |= {"pattern": RELATIVE, "patternErrorMessage": "a path relative to this file, without references"}
    axis, matrix = definitions["Axis"]["properties"], definitions["Matrix"]["properties"]
    axis["path"]["pattern"] = VARYING
    axis["values"]["anyOf"][0]["items"] = {"type": ["string", "number", "boolean"], "pattern": NO_REFERENCE}
    matrix["axes"]["propertyNames"] = {"not": {"enum": list(CELL_KEYS)}}
    matrix["exclude"]["items"]["properties"] = {key: {"type": "string"} for key in CELL_KEYS}


def _open_section(definition: dict[str, Any], more: More) -> None:
    """Let a section and every value in it be null, and a reference as well."""
    for node in definition.get("properties", {}).values():
        _open(node, more)
    _add(definition, ["null"], more)


def _open(node: dict[str, Any], more: More, *, is_item: bool = False) -> None:
    """Let a value be a reference, and null where it is one of a mapping and not of a list."""
    for inner in node.get("patternProperties", {}).values():
        _open(inner, more)
    if "items" in node:
        _open(node["items"], more, is_item=True)
    null = [] if is_item else ["null"]
    if "enum" in node or "const" in node:
        choices = node.pop("enum", None) or [node.pop("const")]
        kind = "reference" if node.pop("type") == "string" else "whole"
        node["anyOf"] = [{"enum": choices}, {"$ref": f"#/$defs/{kind}"}, *({"type": name} for name in null)]
    elif "anyOf" in node:
        node["anyOf"] += [{"type": name} for name in null if not all("$ref" in option for option in node["anyOf"])]
    elif "type" in node:
        _add(node, null, more)


def _add(node: dict[str, Any], null: list[str], more: More) -> None:
    """Widen the type of a value. A text with a pattern gets another one; other types become texts with a pattern."""
    kind = node["type"]
    if more == "null" or (kind == "string" and "pattern" not in node):
        node["type"] = [kind, *null] if null else kind
    elif kind == "string":
        node["type"] = [kind, *null] if null else kind
        node["pattern"] = f"{node['pattern']}|{WITHIN}"
    else:
        node["type"] = [kind, "string", *null]
        node["$ref"] = "#/$defs/value"
