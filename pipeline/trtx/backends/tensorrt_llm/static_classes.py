"""Configuration classes by reading: pydantic models, dataclasses and enumerations as `surface.Schema`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from trtx.backends.tensorrt_llm.source_tree import Module, SourceTree, called_name, keyword
from trtx.backends.tensorrt_llm.static_values import is_enum, members, read_value
from trtx.backends.tensorrt_llm.surface import Field, Schema, Unresolved

# Where the fields of options files start; what these refer to is kept, too.
ROOTS = ("TorchLlmArgs", "TrtLlmArgs", "QuantConfig", "LoraConfig", "BuildConfig", "PluginConfig", "SamplingParams")
OLD_ROOTS = ("LlmArgs",)
# The class whose variants a file chooses by `decoding_type`.
VARIANTS_OF = "DecodingBaseConfig"
# Annotations within annotations, and names of names.
MAX_NESTING = 10
BOUNDS = {"minimum": "ge", "maximum": "le", "exclusive_minimum": "gt"}


def read_schemas(tree: SourceTree, paths: tuple[str, ...]) -> dict[str, Schema]:
    """Every class of some files that options files are made of, by name."""
    found: dict[str, Schema] = {}
    for path in paths:
        module = tree.module(path)
        for name, node in (module.classes if module else {}).items():
            if module is not None and name not in found:
                found[name] = read_class(tree, module, node)
    return {name: found[name] for name in sorted(referenced(found))}


def referenced(schemas: Mapping[str, Schema]) -> set[str]:
    """The classes that the roots are made of."""
    wanted: set[str] = set()
    rest = [name for name in (*ROOTS, *OLD_ROOTS) if name in schemas]
    while rest:
        name = rest.pop()
        if name in wanted:
            continue
        wanted.add(name)
        schema = schemas[name]
        words = {word for row in schema.fields for word in re.findall(r"\w+", row.type)} | set(schema.bases)
        if name == VARIANTS_OF:
            words |= {key for key, value in schemas.items() if value.discriminator}
        rest += sorted(word for word in words if word in schemas)
    return wanted


def read_class(tree: SourceTree, module: Module, node: ast.ClassDef) -> Schema:
    """One class as it is written; what its bases say stands in their schemas."""
    bases = tuple(called_name(base) for base in node.bases if called_name(base))
    if is_enum(node):
        rows = tuple((member.name, member.value) for member in members(tree, module, node))
        return Schema(node.name, bases, members=rows, file=module.path)
    fields = tuple(read_field(tree, module, *row) for row in _annotated(node))
    return Schema(
        node.name,
        bases,
        fields,
        discriminator=_discriminator(node),
        closed=_is_closed(node),
        file=module.path,
    )


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if called_name(_outer(annotation)) != "ClassVar" and not (
                    isinstance(value, ast.Call) and _is_private(value)
                ):
                    yield name, annotation, value


def _outer(annotation: ast.expr) -> ast.expr:
    return annotation.value if isinstance(annotation, ast.Subscript) else annotation


def _is_private(value: ast.Call) -> bool:
    return called_name(value) == "PrivateAttr"


def read_field(tree: SourceTree, module: Module, name: str, annotation: ast.expr, value: ast.expr | None) -> Field:
    """A field: its annotation as written, its default, bounds and other names."""
    text = annotation.value if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str) else None
    data: dict[str, Any] = {"name": name.lstrip("_") or name, "type": text or ast.unparse(annotation)}
    choices = literal_choices(tree, module, annotation)
    if choices is not None:
        data["choices"] = choices
    if value is None:
        data["required"] = True
    elif isinstance(value, ast.Call) and called_name(value).lower().endswith("field"):
        data |= _field_call(tree, module, value, name)
    else:
        data["default"] = read_value(tree, module, value)
    return Field(**data)


def _field_call(tree: SourceTree, module: Module, call: ast.Call, name: str) -> dict[str, Any]:
    """What `Field(…)` or `field(…)` says of a field."""
    data: dict[str, Any] = {}
    default = keyword(call, "default") or (call.args[0] if call.args else None)
    factory = keyword(call, "default_factory")
    if isinstance(default, ast.Constant) and default.value is ...:
        data["required"] = True
    elif default is not None:
        data["default"] = read_value(tree, module, default)
    elif factory is not None:
        data["default"] = _from_factory(factory)
    else:
        data["required"] = True
    for key, word in BOUNDS.items():
        bound = read_value(tree, module, keyword(call, word))
        if isinstance(bound, int | float):
            data[key] = bound
    for key, word in (("frozen", "frozen"), ("excluded", "exclude"), ("deprecated", "deprecated")):
        if keyword(call, word) is not None and read_value(tree, module, keyword(call, word)) is not False:
            data[key] = True
    status = read_value(tree, module, keyword(call, "status"))
    extra = read_value(tree, module, keyword(call, "json_schema_extra"))
    if isinstance(extra, dict) and isinstance(extra.get("status"), str):
        status = extra["status"]
    if isinstance(status, str):
        data["status"] = status
    aliases = tuple(each for each in _aliases(call) if each != name)
    return {**data, "aliases": aliases} if aliases else data


def _from_factory(factory: ast.expr) -> Any:
    if isinstance(factory, ast.Name) and factory.id in ("list", "dict"):
        return [] if factory.id == "list" else {}
    if isinstance(factory, ast.Lambda):
        return Unresolved(ast.unparse(factory.body))
    return Unresolved(f"{ast.unparse(factory)}()")


def _aliases(call: ast.Call) -> Iterator[str]:
    for word in ("alias", "validation_alias"):
        value = keyword(call, word)
        if isinstance(value, ast.Call):  # AliasChoices("a", "b", AliasPath(…))
            yield from (
                each.value for each in value.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )
        elif isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def literal_choices(tree: SourceTree, module: Module, annotation: ast.expr, depth: int = 0) -> tuple[Any, ...] | None:
    """The values of a Literal, through Optional, Union, `|`, aliases and quotes; None where other values are fine."""
    if depth > MAX_NESTING:
        return None
    result: tuple[Any, ...] | None = None
    match annotation:
        case ast.Constant(value=None):
            result = (None,)
        case ast.Constant(value=str() as text):
            with suppress(SyntaxError, ValueError):
                result = literal_choices(tree, module, ast.parse(text, mode="eval").body, depth + 1)
        case ast.Subscript(value=base, slice=index):
            items = index.elts if isinstance(index, ast.Tuple) else [index]
            result = _subscripted(tree, module, called_name(base), items, depth)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            result = _united(tuple(literal_choices(tree, module, item, depth + 1) for item in (left, right)))
        case ast.Name(id=name):
            found = tree.imported(module, name)
            if found and found[1] in found[0].assigned:
                result = literal_choices(tree, found[0], found[0].assigned[found[1]], depth + 1)
    return result


def _subscripted(
    tree: SourceTree, module: Module, kind: str, items: list[ast.expr], depth: int
) -> tuple[Any, ...] | None:
    """The values of Literal[…], Optional[…], Annotated[…] or Union[…]."""
    if kind == "Literal":
        values = tuple(read_value(tree, module, item) for item in items)
        return None if any(isinstance(value, Unresolved) for value in values) else values
    if kind not in ("Optional", "Annotated", "Union"):
        return None
    taken = items if kind == "Union" else items[:1]
    parts = tuple(literal_choices(tree, module, item, depth + 1) for item in taken)
    return _united((*parts, (None,)) if kind == "Optional" else parts)


def _united(parts: tuple[tuple[Any, ...] | None, ...]) -> tuple[Any, ...] | None:
    if any(part is None for part in parts):
        return None
    return tuple(dict.fromkeys(value for part in parts if part for value in part))


def _is_closed(node: ast.ClassDef) -> bool:
    """Whether the class itself forbids unknown keys: ConfigDict(extra="forbid"), or class Config."""
    for statement in ast.walk(node):
        match statement:
            case ast.Assign(targets=[ast.Name(id="model_config")], value=ast.Call() as call):
                extra = keyword(call, "extra")
                return isinstance(extra, ast.Constant) and extra.value == "forbid"
            case ast.Assign(targets=[ast.Name(id="extra")], value=ast.Constant(value="forbid")):
                return True
    return False


def _discriminator(node: ast.ClassDef) -> str | None:
    """The word by which a file names a variant."""
    for statement in node.body:
        match statement:
            case (
                ast.AnnAssign(target=ast.Name(id="decoding_type"), value=ast.Constant(value=str() as word))
                | ast.Assign(targets=[ast.Name(id="decoding_type")], value=ast.Constant(value=str() as word))
            ):
                return word
    return None
