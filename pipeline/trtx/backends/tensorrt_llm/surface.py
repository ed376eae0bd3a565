"""The surface of one TensorRT-LLM release: its tools, their options, and the schemas of its configuration files.

Everything is JSON both ways: the shipped tables, and what `trtx probe` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, cast

# exact: read from the release's own sources. observed: seen in a stored file or page of that release. dated: a change
# with a known release before it. interval: the same in releases before and after. unknown: not established.
Confidence = Literal["exact", "observed", "dated", "interval", "unknown"]
CONFIDENCES: tuple[Confidence, ...] = ("exact", "observed", "dated", "interval", "unknown")
Framework = Literal["argparse", "click"]


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A value that reading alone does not give: the expression it is computed by."""

    expression: str


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a tool.

    `flags` are all spellings, none for a positional argument; `off_flags` those that set a switch to false. `name` is
    the destination. `type` is one of str int float bool path choice enum. `default` and `choices` may be Unresolved.
    `const` is the value of an option with nargs `?` that is given without one. `certain_flags` and `certain_choices`
    are those known to exist in this release where `flags` and `choices` hold more; None when all are.
    `confidence` says how sure it is that the option exists, `evidence` where that comes from.
    """

    flags: tuple[str, ...]
    name: str
    type: str = "str"
    default: Any = None
    choices: tuple[Any, ...] | Unresolved | None = None
    nargs: str | int | None = None
    const: Any = None
    is_flag: bool = False
    required: bool = False
    positional: bool = False
    multiple: bool = False
    minimum: float | None = None
    maximum: float | None = None
    off_flags: tuple[str, ...] = ()
    choice_aliases: Mapping[str, str] | None = None
    certain_flags: tuple[str, ...] | None = None
    certain_choices: tuple[Any, ...] | None = None
    envvar: str | None = None
    deprecated: bool = False
    hidden: bool = False
    stability: str | None = None
    note: str = ""
    confidence: Confidence = "exact"
    evidence: str = ""

    @property
    def flag(self) -> str:
        """The spelling to write: the longest of those that surely exist; the name of a positional argument."""
        flags = self.flags if self.certain_flags is None else self.certain_flags
        return next((flag for flag in flags if flag.startswith("--")), flags[0] if flags else self.name)

    @property
    def is_certain(self) -> bool:
        """Whether the release surely has this option."""
        return self.confidence != "unknown"

    def takes(self, value: Any) -> Confidence | None:
        """How sure it is that the release takes this value of a closed set; None when it does not."""
        if self.choices is None:
            return self.confidence
        if isinstance(self.choices, Unresolved):
            return self.confidence if value in (self.certain_choices or ()) else "unknown"
        if value not in self.choices and value not in (self.choice_aliases or {}):
            return None
        return self.confidence if self.certain_choices is None or value in self.certain_choices else "unknown"


@dataclass(frozen=True, slots=True)
class Tool:
    """One command line: a script, a console command, or a subcommand of one (`command`, its words separated by spaces).

    `files` are paths inside TensorRT-LLM's repository, several where the release's layout is not established. A group
    has `subcommands`; `default_command` is the one that runs when none is named.
    """

    name: str
    command: str | None
    framework: Framework
    options: tuple[Option, ...]
    files: tuple[str, ...] = ()
    subcommands: tuple[str, ...] = ()
    default_command: str | None = None
    confidence: Confidence = "exact"

    @property
    def key(self) -> str:
        """Its name in a release's table: "trtllm-build", "trtllm-bench throughput"."""
        return f"{self.name} {self.command}" if self.command else self.name

    def option(self, word: str) -> Option | None:
        """The option with a flag (`--dtype`), an off-flag or a name (`dtype`)."""
        for option in self.options:
            if word in option.flags or word in option.off_flags or word == option.name:
                return option
        return None


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a schema; `type` is its annotation as written."""

    name: str
    type: str
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] | None = None
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    status: str | None = None
    frozen: bool = False
    excluded: bool = False
    deprecated: bool = False
    confidence: Confidence = "exact"


@dataclass(frozen=True, slots=True)
class Schema:
    """A class of configuration: its own fields (those of its bases stand there), or the members of an enumeration.

    `closed` says whether unknown keys are refused, as far as the class itself or its bases say so.
    `discriminator` is the `decoding_type` by which a file names it.
    """

    name: str
    bases: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    members: tuple[tuple[str, Any], ...] | None = None
    discriminator: str | None = None
    closed: bool = False
    file: str = ""
    confidence: Confidence = "exact"


@dataclass(frozen=True, slots=True)
class Surface:
    """What is read from a release's sources. Mappings to a confidence are name → how sure it is that it is there."""

    version: str
    tools: Mapping[str, Tool]
    schemas: Mapping[str, Schema]
    engine_architectures: Mapping[str, Confidence]
    pytorch_architectures: Mapping[str, Confidence]
    quant_algos: Mapping[str, Confidence]
    kv_algos: Mapping[str, Confidence]
    env_vars: Mapping[str, Confidence]
    triton_models: Mapping[str, Mapping[str, Any]]
    triton_confidence: Confidence = "exact"


def value_to_json(value: Any) -> Any:
    """A default or a set of choices as JSON; what reading does not give becomes {"unresolved": expression}."""
    if isinstance(value, Unresolved):
        return {"unresolved": value.expression}
    return list(value) if isinstance(value, tuple) else value


def value_from_json(value: Any, *, is_tuple: bool = False) -> Any:
    """The reverse of `value_to_json`."""
    if isinstance(value, dict) and value.keys() == {"unresolved"}:
        return Unresolved(value["unresolved"])
    return tuple(value) if is_tuple and isinstance(value, list) else value


def row_to_json(row: Option | Field) -> dict[str, Any]:
    """An option or a field as JSON, without what is as the class has it by default."""
    result = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if (
            field.default is MISSING
            or value != field.default
            or isinstance(value, bool) is not isinstance(field.default, bool)
        ):
            result[field.name] = value_to_json(value)
    return result


_TUPLES = frozenset({"flags", "choices", "off_flags", "certain_flags", "certain_choices", "aliases"})


def _read_row(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value_from_json(value, is_tuple=key in _TUPLES) if isinstance(value, list | dict) else value
        for key, value in data.items()
    }


def option_from_json(data: Mapping[str, Any]) -> Option:
    """Raises TypeError for keys that no option has."""
    return Option(**_read_row(data))


def field_from_json(data: Mapping[str, Any]) -> Field:
    """Raises TypeError for keys that no field has."""
    return Field(**_read_row(data))


def tool_to_json(tool: Tool) -> dict[str, Any]:
    result: dict[str, Any] = {"framework": tool.framework, "files": list(tool.files)}
    if tool.subcommands:
        result["subcommands"] = list(tool.subcommands)
    if tool.default_command:
        result["default_command"] = tool.default_command
    if tool.confidence != "exact":
        result["confidence"] = tool.confidence
    return {**result, "options": [row_to_json(option) for option in tool.options]}


def tool_from_json(key: str, data: Mapping[str, Any], options: tuple[Option, ...] | None = None) -> Tool:
    """A tool by its key; `options` where they are stored elsewhere."""
    name, _, command = key.partition(" ")
    return Tool(
        name,
        command or None,
        data["framework"],
        tuple(map(option_from_json, data["options"])) if options is None else options,
        tuple(data.get("files", ())),
        tuple(data.get("subcommands", ())),
        data.get("default_command"),
        data.get("confidence", "exact"),
    )


def schema_to_json(schema: Schema) -> dict[str, Any]:
    result: dict[str, Any] = {"fields": [row_to_json(field) for field in schema.fields]}
    if schema.members is not None:
        result = {"members": [list(member) for member in schema.members]}
    for key in ("bases", "discriminator", "closed", "file"):
        if value := getattr(schema, key):
            result[key] = value_to_json(value)
    if schema.confidence != "exact":
        result["confidence"] = schema.confidence
    return result


def schema_from_json(name: str, data: Mapping[str, Any], sure: Mapping[str, Confidence] | None = None) -> Schema:
    """A schema; `sure` are fields whose confidence differs from the schema's."""
    confidence = cast(Confidence, data.get("confidence", "exact"))
    rows = (
        field_from_json({"confidence": (sure or {}).get(row["name"], confidence), **row})
        for row in data.get("fields", ())
    )
    members = data.get("members")
    return Schema(
        name,
        tuple(data.get("bases", ())),
        tuple(rows),
        None if members is None else tuple((member[0], member[1]) for member in members),
        data.get("discriminator"),
        data.get("closed", False),
        data.get("file", ""),
        confidence,
    )


MAPS = ("engine_architectures", "pytorch_architectures", "quant_algos", "kv_algos", "env_vars")


def surface_to_json(surface: Surface) -> dict[str, Any]:
    """The form that `trtx probe` writes."""
    return {
        "version": surface.version,
        "tools": {key: tool_to_json(tool) for key, tool in surface.tools.items()},
        "schemas": {name: schema_to_json(schema) for name, schema in surface.schemas.items()},
        **{name: dict(getattr(surface, name)) for name in MAPS},
        "triton_models": {name: dict(model) for name, model in surface.triton_models.items()},
    }


def surface_from_json(data: Mapping[str, Any]) -> Surface:
    """Raises KeyError, TypeError or ValueError for what is no surface."""
    maps = {key: {name: _confidence(word) for name, word in data[key].items()} for key in MAPS}
    tools = {key: tool_from_json(key, tool) for key, tool in data["tools"].items()}
    schemas = {name: schema_from_json(name, schema) for name, schema in data["schemas"].items()}
    return make_surface(data["version"], tools, schemas, maps, data.get("triton_models", {}), "exact")


def make_surface(
    version: str,
    tools: Mapping[str, Tool],
    schemas: Mapping[str, Schema],
    maps: Mapping[str, Mapping[str, Confidence]],
    triton_models: Mapping[str, Mapping[str, Any]],
    triton_confidence: Confidence,
) -> Surface:
    """A surface whose MAPS are given by name."""
    return Surface(
        version,
        tools,
        schemas,
        maps["engine_architectures"],
        maps["pytorch_architectures"],
        maps["quant_algos"],
        maps["kv_algos"],
        maps["env_vars"],
        triton_models,
        triton_confidence,
    )


def _confidence(word: Any) -> Confidence:
    if word not in CONFIDENCES:
        raise ValueError(f"{word!r} is no confidence")
    return cast(Confidence, word)
