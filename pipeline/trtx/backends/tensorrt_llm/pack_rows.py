"""Rows of raw tables → rows of `surface`: one spelling for the same fact, without what is as usual."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

# Raw names of single-command tools and of groups, which are called as the tool itself.
OWN_NAMES = ("(single command)", "cli", "main")
# Subcommands that only exist below another one.
PARENTS = {("trtllm-bench", name): "prepare-dataset" for name in ("real-dataset", "token-norm-dist", "token-unif-dist")}
# Tools that are a choice of commands without options of their own, and the one that runs when none is named
# (tensorrt_llm/commands/serve.py).
DEFAULT_COMMANDS = {"trtllm-serve": "serve"}
KEPT = ("nargs", "const", "positional", "choice_aliases", "envvar", "stability", "note")
TRUE_ONLY = ("is_flag", "required", "multiple", "deprecated", "hidden")


def normalise_value(value: Any) -> Any:
    """A default or choices: expressions that were not resolved become {"unresolved": …}."""
    if isinstance(value, dict):
        for key, form in (("expr", "{}"), ("enum", "{}"), ("factory", "{}()")):
            if key in value:
                return {"unresolved": form.format(value[key])}
    return value


def normalise_option(raw: Mapping[str, Any]) -> Json:
    """An option as `surface.row_to_json` has it; of derived tables also its confidence and evidence."""
    option: Json = {"flags": raw["flags"], "name": raw["dest"]}
    if raw["type"] != "str":
        option["type"] = raw["type"]
    if raw.get("default") is not None:
        option["default"] = normalise_value(raw["default"])
    if raw.get("choices") is not None:
        option["choices"] = normalise_value(raw["choices"])
    option.update({name: True for name in TRUE_ONLY if raw.get(name)})
    option.update({name: raw[name] for name in KEPT if raw.get(name) is not None})
    if "positional" in option:
        option["positional"] = True
    if raw.get("off_flags"):
        option["off_flags"] = raw["off_flags"]
    limits = raw.get("range") or {}
    for name, key in (("minimum", "min"), ("maximum", "max")):
        if limits.get(key) is not None:
            option[name] = limits[key]
    if "confidence" in raw:
        option["confidence"], option["evidence"] = raw["confidence"], raw["evidence"]
        note_uncertain_parts(raw, option)
    return option


def note_uncertain_parts(raw: Mapping[str, Any], option: Json) -> None:
    """What of an option that surely exists is not sure: some spellings, some choices."""
    if raw.get("aliases_certain") and raw["aliases_certain"] != raw["flags"]:
        option["certain_flags"] = raw["aliases_certain"]
    if "choices_certain" in raw or "later" in raw:
        later = raw.get("later", {}).get("choices") or raw["choices"]
        certain = raw.get("choices_certain", [word for word in raw["choices"] if word in later])
        both = [*raw["choices"], *raw.get("choices_likely", ()), *later]
        option["choices"], option["certain_choices"] = list(dict.fromkeys(both)), certain
        # Only the set of choices differs between the releases around it: the option is in both.
        option["confidence"] = "interval"


def merge_options(before: Json, after: Json, old: str, new: str) -> Json:
    """An option that releases before and after have: where they differ, only what they share is certain."""
    merged: Json = {**after, "confidence": "interval", "evidence": f"same in {old} and {new}"}
    if before == after:
        return merged
    merged["evidence"] = f"differs between {old} and {new}"
    if before["flags"] != after["flags"]:
        merged["flags"] = list(dict.fromkeys((*before["flags"], *after["flags"])))
        merged["certain_flags"] = [flag for flag in before["flags"] if flag in after["flags"]]
        if not merged["certain_flags"]:
            merged["confidence"] = "unknown"
    if before.get("choices") != after.get("choices"):
        merge_choices(before.get("choices"), after.get("choices"), merged)
    if before.get("default") != after.get("default"):
        merged["default"] = {"unresolved": f"{before.get('default')!r} in {old}, {after.get('default')!r} in {new}"}
    if any(before.get(name) != after.get(name) for name in ("type", "nargs", "is_flag", "multiple")):
        merged["confidence"] = "unknown"
    return merged


def merge_choices(before: Any, after: Any, merged: Json) -> None:
    """The union of two sets of choices, and what of it is certain."""
    if isinstance(before, list) and isinstance(after, list):
        merged["choices"] = list(dict.fromkeys((*before, *after)))
        merged["certain_choices"] = [word for word in before if word in after]
    else:  # One release takes anything, or its set is not known: the other's is certain.
        known = before if isinstance(before, list) else after if isinstance(after, list) else None
        merged["choices"] = {"unresolved": "differs"}
        if known is not None:
            merged["certain_choices"] = known


def normalise_tools(cli: Mapping[str, Any]) -> Json:
    """Tools by key: every subcommand of a click program is one."""
    tools: Json = {}
    for name, raw in cli.items():
        if "options" in raw:
            files = [raw["file"]] if raw.get("file") else []
            options = [normalise_option(option) for option in raw["options"]]
            tools[name] = {"framework": raw["framework"], "files": files, "options": options}
        else:
            tools.update(normalise_commands(name, raw))
    return dict(sorted(tools.items()))


def normalise_commands(name: str, raw: Mapping[str, Any]) -> Json:
    """A click program and its subcommands."""
    tools: Json = {}
    for command in raw["commands"]:
        word = command["name"]
        own = word in (*OWN_NAMES, name)
        parent = PARENTS.get((name, word))
        key = name if own else f"{name} {parent} {word}" if parent else f"{name} {word}"
        files = [command["file"]] if command.get("file") else []
        options = [normalise_option(option) for option in command["options"]]
        tools[key] = {"framework": raw["framework"], "files": files, "options": options}
        if command.get("confidence") == "unknown":
            tools[key]["confidence"] = "unknown"
    if name not in tools:
        files = sorted({file for tool in tools.values() for file in tool["files"]})
        tools[name] = {"framework": raw["framework"], "files": files, "options": []}
    for key, tool in tools.items():
        words = [other[len(key) + 1 :] for other in tools if other.startswith(f"{key} ")]
        if direct := sorted(word for word in words if " " not in word):
            tool["subcommands"] = direct
    default = DEFAULT_COMMANDS.get(name)
    if default in tools[name].get("subcommands", ()):
        tools[name]["default_command"] = default
    return tools


def normalise_schema(raw: Mapping[str, Any]) -> Json:
    """A class of configuration."""
    schema: Json = {"file": raw["file"]} if raw.get("file") else {}
    if raw.get("bases"):
        schema["bases"] = raw["bases"]
    if "members" in raw:
        return {**schema, "members": [[member[0], normalise_value(member[1])] for member in raw["members"]]}
    if raw.get("decoding_type"):
        schema["discriminator"] = raw["decoding_type"]
    if raw.get("extra") == "forbid":
        schema["closed"] = True
    schema["fields"] = [normalise_field(field) for field in raw.get("fields", ())]
    return schema


def normalise_field(raw: Mapping[str, Any]) -> Json:
    """One field of a schema."""
    field: Json = {"name": raw["name"], "type": raw["type"]}
    if raw.get("default") is not None:
        field["default"] = normalise_value(raw["default"])
    if raw.get("choices") is not None:
        field["choices"] = raw["choices"]
    if aliases := read_aliases(raw):
        field["aliases"] = aliases
    for name, key in (("minimum", "ge"), ("maximum", "le"), ("exclusive_minimum", "gt")):
        if raw.get(key) is not None:
            field[name] = raw[key]
    for name, key in (
        ("frozen", "frozen"),
        ("excluded", "exclude"),
        ("deprecated", "deprecated"),
        ("required", "required"),
    ):
        if raw.get(key):
            field[name] = True
    if raw.get("status"):
        field["status"] = raw["status"]
    return field


def read_aliases(raw: Mapping[str, Any]) -> list[str]:
    """Other names by which a file may give a field (pydantic's alias, validation_alias and AliasChoices)."""
    names: list[str] = []
    for key in ("alias", "validation_alias"):
        value = raw.get(key)
        if isinstance(value, str):
            names.append(value)
        elif isinstance(value, dict):
            names += re.findall(r"'(\w+)'", re.sub(r"AliasPath\([^)]*\)", "", value["expr"]))
    return [name for name in dict.fromkeys(names) if name != raw["name"]]
