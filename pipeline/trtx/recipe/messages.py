"""What pydantic found wrong, in words for people: what, why and fix. Imported only when there is something to say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic_core import ErrorDetails

from trtx.errors import did_you_mean, nearest
from trtx.recipe.lookup import fields_of, find_key, find_model, find_spot, value_at
from trtx.recipe.parts import ANY_LINE_PATTERN, LINE_PATTERN, NAME_PATTERN, Url
from trtx.recipe.problems import Path
from trtx.recipe.runners import GPUS_PATTERN, GRES_PATTERN, MOUNT_PATTERN, SSH_PATTERN
from trtx.recipe.schema import BASE_PATTERN, CONTAINER_PATTERN, IMAGE_PATTERN, OLDER, SCHEMA
from trtx.recipe.tensorrt_llm import OPTION_PATTERN
from trtx.recipe.tree import dotted

URL_PATTERN = get_args(Url)[1].metadata[0].pattern

# Stands for the name of the file that a message is about, which only its reader knows.
FILE = "FILE"

NOTHING_HIDDEN: Mapping[Path, str] = {}
KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


@dataclass(frozen=True)
class Message:
    """One problem without its place: `path` is in the file; `at_key` when the key is wrong and not the value."""

    path: Path
    what: str
    why: str = ""
    fix: str = ""
    at_key: bool = False


@dataclass(frozen=True)
class Finding:
    """One error of pydantic, looked up: `help` is the field's description, `name` its dotted path."""

    kind: str
    path: Path
    value: Any
    context: dict[str, Any]
    data: Any
    help: str
    text: str

    @property
    def name(self) -> str:
        return dotted(self.path)


class Hidden(str):
    """Stands for a value that may be a secret: the reference that it came from."""


def explain(error: ErrorDetails, data: Any, hidden: Mapping[Path, str] = NOTHING_HIDDEN) -> Message:
    """Word one error of Recipe.model_validate(data). `hidden` are the paths of values that must not be shown."""
    path, is_key = file_path(error["loc"], data)
    spot = find_spot(path, data)
    help_text = (spot.field.description or "") if spot and spot.field else ""
    value = Hidden(hidden[path]) if path in hidden else error["input"]
    finding = Finding(error["type"], path, value, error.get("ctx", {}), data, help_text, error["msg"])
    if is_key and finding.kind == "rule":
        return _rule(finding, at_key=True)
    if is_key and finding.context.get("pattern") == OPTION_PATTERN:
        return Message(path, f"'{path[-1]}' cannot be an option", *RULES_OF[OPTION_PATTERN], at_key=True)
    if is_key:
        return Message(path, f"'{path[-1]}' cannot be a name", *name_rule(str(path[-1])), at_key=True)
    return WORDING.get(finding.kind, _other)(finding)


def file_path(loc: tuple[int | str, ...], data: Any) -> tuple[Path, bool]:
    """pydantic's location as a path in the file: without the tags of unions; True when it is about the key itself."""
    is_key = bool(loc) and loc[-1] == "[key]"
    loc = loc[:-1] if is_key else loc
    path: Path = ()
    for number, part in enumerate(loc):
        is_tag = isinstance(data, dict) and part not in data and number < len(loc) - 1
        if not is_tag:
            path, data = (*path, part), value_at((part,), data)
    return path, is_key


def show(value: Any) -> str:
    """A value as it may stand in YAML, shortened; the kind only for lists and mappings."""
    if isinstance(value, Hidden):
        return f"the value of {value}"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + '…"'


def _unknown_key(finding: Finding) -> Message:
    path, word = finding.path, str(finding.path[-1])
    model = find_model(path[:-1], finding.data)
    known = fields_of(model) if model else {}
    elsewhere = _closest_place(path)
    fix = did_you_mean(word, known)
    # The very word elsewhere is a better guess than a word that is only somewhat like it here.
    if elsewhere and not get_close_matches(word, known, n=1, cutoff=0.8):
        fix = f"it belongs to {dotted(elsewhere)}"
    return Message(path, f"unknown key '{word}'{_inside(path)}", "", fix, at_key=True)


def _closest_place(path: Path) -> Path | None:
    """Where the language has the last key of a path: the place that shares most of the way, free names filled in."""
    best: tuple[int, int, Path] | None = None
    for place in find_key(str(path[-1])):
        shared = 0
        while shared < min(len(place), len(path)) and place[shared] in ("*", path[shared]):
            shared += 1
        candidate = (-shared, len(place), (*path[:shared], *place[shared:]))
        best = min(best, candidate, key=lambda ranked: ranked[:2]) if best else candidate
    return best[2] if best else None


def _missing_key(finding: Finding) -> Message:
    path, key = finding.path[:-1], finding.path[-1]
    if finding.path == ("schema",):
        why = "it says which language the file is written in"
        return Message((), "the key 'schema' is missing", why, f"begin with `schema: {SCHEMA}`")
    return Message(
        path, f"the key '{key}' is missing{_inside(finding.path)}", finding.help, f"add `{key}: …`", at_key=True
    )


def _inside(path: Path) -> str:
    return f" in {dotted(path[:-1])}" if path[:-1] else ""


def _not_a_choice(finding: Finding) -> Message:
    value, expected = finding.value, str(finding.context.get("expected") or finding.context["expected_tags"])
    if finding.path == ("schema",):
        what = f"a recipe of schema {show(value)} cannot be read"
        fix = f"run `trtx migrate {FILE}`" if value in OLDER else f"write `schema: {SCHEMA}`"
        return Message(finding.path, what, f"this trtx reads {SCHEMA}", fix)
    choices = re.findall(r"'([^']*)'", expected) or re.findall(r"\d+", expected)
    is_text = isinstance(value, str) and not isinstance(value, Hidden)
    fix = did_you_mean(value, choices) if is_text else f"known: {', '.join(choices)}"
    return Message(finding.path, f"{finding.name} cannot be {show(value)}", finding.help, fix)


def _bad_tag(finding: Finding) -> Message:
    path = (*finding.path, "type")
    return _not_a_choice(
        Finding(finding.kind, path, finding.value["type"], finding.context, finding.data, finding.help, finding.text)
    )


def _no_tag(finding: Finding) -> Message:
    what, why = f"the key 'type' is missing in {finding.name}", "it says what kind of runner this is"
    mistyped = nearest("type", finding.value)
    fix = f"write 'type' instead of '{mistyped}'" if mistyped else "add `type: local`"
    return Message(finding.path, what, why, fix, at_key=True)


def _unit(finding: Finding) -> Message:
    if isinstance(finding.value, Hidden):
        what = f"{finding.name} cannot be {show(finding.value)}"
        return Message(finding.path, what, finding.help, "give a number with a unit, such as 2GiB or 400ms")
    return Message(
        finding.path, f"{finding.name}: {finding.context['message']}", finding.help, str(finding.context["fix"])
    )


def _rule(finding: Finding, *, at_key: bool = False) -> Message:
    if isinstance(finding.value, Hidden):
        return Message(finding.path, f"{finding.name} cannot be {show(finding.value)}", finding.help)
    context = finding.context
    return Message(finding.path, f"{finding.name}: {context['message']}", finding.help, str(context["fix"]), at_key)


def _wrong_type(finding: Finding) -> Message:
    what = f"{finding.name} must be {KINDS[finding.kind]}, not {show(finding.value)}"
    return Message(finding.path, what, finding.help, _type_fix(KINDS[finding.kind], finding.value))


def _type_fix(expected: str, value: Any) -> str:
    text = str(value)
    if expected == "a list" and not isinstance(value, dict):
        return f"write [{text}]"
    if expected == "a whole number" and re.fullmatch(r"\d+(\.0)?", text):
        return f"write {text.removesuffix('.0')}"
    if expected == "a number" and re.fullmatch(r"\d+(\.\d+)?", text):
        return f"write {text} without quotes"
    if expected == "true or false" and text.lower() in ("true", "false"):
        return f"write {text.lower()} without quotes"
    if expected == "a text" and isinstance(value, int | float):
        return f'write "{text.lower() if isinstance(value, bool) else text}"'
    return "write `key: value` lines under it, indented" if expected == "a mapping" else ""


def _empty(finding: Finding) -> Message:
    return Message(finding.path, f"{finding.name} must not be empty", finding.help, "give at least one, or remove it")


def _out_of_bounds(finding: Finding) -> Message:
    words, key = BOUNDS[finding.kind]
    bound = f"{words} {finding.context[key]}"
    return Message(finding.path, f"{finding.name} must be {bound}, not {show(finding.value)}", finding.help)


def _bad_pattern(finding: Finding) -> Message:
    why, fix = _pattern_rule(finding.context["pattern"], str(finding.value), finding.help)
    if isinstance(finding.value, Hidden):
        fix = ""
    return Message(finding.path, f"{finding.name} cannot be {show(finding.value)}", why, fix)


def _pattern_rule(pattern: str, text: str, help_text: str) -> tuple[str, str]:
    if pattern == NAME_PATTERN:
        return name_rule(text)
    if pattern in RULES_OF:
        return RULES_OF[pattern]
    if pattern in (IMAGE_PATTERN, BASE_PATTERN, CONTAINER_PATTERN):
        fix = "write registry.example.com/folder/name in lower case" + (
            ", without a tag" if pattern == IMAGE_PATTERN else ""
        )
        return "it is not the name of a container image", fix
    return _url_rule(text) if pattern == URL_PATTERN else (help_text, f"it must match {pattern}")


def _url_rule(text: str) -> tuple[str, str]:
    why = "a source is a URL with a scheme"
    if "://" in text:
        return why, "write the scheme in lower case, and no spaces"
    if text.startswith((".", "/", "~")):
        return why, f"write file://{text}"
    return why, f"write hf://{text} for the hub, or file://… for a folder"


# Patterns of runners → why and fix.
RULES_OF = {
    LINE_PATTERN: ("it becomes part of one line of a batch script", "write something, without line breaks or the like"),
    ANY_LINE_PATTERN: ("it becomes part of one line of a batch script", "remove line breaks and control characters"),
    MOUNT_PATTERN: ("it is not two absolute paths", "write /folder/of/the/node:/folder/inside, with :ro to only read"),
    GPUS_PATTERN: ("it is not a type and a number of GPUs", 'write h100:1, or "1" for any GPU'),
    GRES_PATTERN: ("gres.conf names types with letters, digits, '.', '_' and '-'", ""),
    OPTION_PATTERN: ("it is not the name of an option", "write it without dashes, as gemm_plugin"),
    SSH_PATTERN: ("it names no login node", "write ssh://host or ssh://user@host:port; ~/.ssh/config knows the rest"),
}


def name_rule(name: str) -> tuple[str, str]:
    why = "names stand in paths and selectors: lower-case letters, digits, '.', '_' and '-', at most 63 characters"
    better = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63]
    return why, f"write '{better}'" if better else ""


def _other(finding: Finding) -> Message:
    return Message(finding.path, f"{finding.name}: {finding.text}", finding.help)


# pydantic's error type → wording; https://docs.pydantic.dev/latest/errors/validation_errors/
WORDING: dict[str, Callable[[Finding], Message]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "literal_error": _not_a_choice,
    "union_tag_invalid": _bad_tag,
    "union_tag_not_found": _no_tag,
    "unit": _unit,
    "rule": _rule,
    "string_pattern_mismatch": _bad_pattern,
    "too_short": _empty,
    "string_too_short": _empty,
    **dict.fromkeys(KINDS, _wrong_type),
    **dict.fromkeys(BOUNDS, _out_of_bounds),
}
