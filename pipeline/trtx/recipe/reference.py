"""The reference page of the recipe language: tables made from the models, between the words of its template."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from trtx.errors import BY_NAME, EXIT_PLAN_HAS_CHANGES
from trtx.recipe.describe import make_plain_schema
from trtx.recipe.parts import ANY_LINE_PATTERN, LINE_PATTERN, NAME_PATTERN, Url
from trtx.recipe.problems import Path
from trtx.recipe.runners import GPUS_PATTERN, GRES_PATTERN, IMAGE_FILE_PATTERN, MOUNT_PATTERN, SSH_PATTERN
from trtx.recipe.schema import BASE_PATTERN, CONTAINER_PATTERN, IMAGE_PATTERN
from trtx.recipe.tensorrt_llm import ALIASES, COMPOSED
from trtx.recipe.unavailable import RULES
from trtx.recipe.units import DURATIONS, SIZES, ByteSize, Duration, Percent, TimeLimit

# What a setting does: the stages whose own factors it changes, and the reason if there are none.
Effects = Callable[[str], tuple[tuple[str, ...], str]]

NOT_YET = "†"
OTHER_BACKEND = "‡"
ANYTHING = "any values"
# Keys without a table of their own that the page has a chapter for.
EXPLAINED = ("extends", "vars")
REFUSED = "Part of the language, and refused by this version."
ELSEWHERE = "Only with `engine.backend: tensorrt-llm`."
# Reasons of an effect that a reader of the page gains nothing from.
QUIET = (
    "has only one value",
    "gates judge results and change none",
    "gone once the file is read: what it changes counts as the setting that it changes",
)
MARKS = {NOT_YET: REFUSED, OTHER_BACKEND: ELSEWHERE}
# Stands for a free name in headings and keys.
FREE = "NAME"


def _pattern(kind: Any) -> str:
    return str(next(item.json_schema["pattern"] for item in get_args(kind) if hasattr(item, "json_schema")))


PATTERNS = {
    NAME_PATTERN: "[name](#names)",
    get_args(Url)[1].metadata[0].pattern: "URL",
    IMAGE_PATTERN: "image name",
    BASE_PATTERN: "image name with tag or digest",
    CONTAINER_PATTERN: "image name with tag or digest, or path",
    _pattern(ByteSize): "[size](#units)",
    _pattern(Duration): "[duration](#units)",
    _pattern(TimeLimit): "[duration](#units)",
    LINE_PATTERN: "text",
    ANY_LINE_PATTERN: "text",
    GRES_PATTERN: "text",
    GPUS_PATTERN: "text",
    MOUNT_PATTERN: "text",
    SSH_PATTERN: "URL",
    IMAGE_FILE_PATTERN: "image name with digest, or path",
    _pattern(Percent): "[percentage](#units)",
}
TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "object": "mapping",
}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


@dataclass(frozen=True)
class Section:
    """A mapping of the language with keys of its own.

    `path` has `*` for a free name and for an item of a list; `name` is the same for people.
    """

    path: Path
    name: str
    node: dict[str, Any]

    @property
    def anchor(self) -> str:
        """GitHub's name of the heading: lower case, `-` for spaces, without punctuation."""
        kept = (letter for letter in self.heading.lower() if letter.isalnum() or letter in "-_ ")
        return "".join(kept).replace(" ", "-")

    @property
    def heading(self) -> str:
        kind = self.node["properties"].get("type", {}).get("const")
        return f"`{self.name}`, `type: {kind}`" if kind else f"`{self.name}`"


@dataclass(frozen=True)
class _Page:
    """The parts of the page that are made from the models."""

    schema: dict[str, Any]
    effects: Effects | None

    def overview(self) -> str:
        """The table of all keys at the top of a file."""
        return self.table(Section((), "", self.schema))

    def chapter(self, key: str) -> str:
        """A heading and a table for each section below a top-level key."""
        made = []
        for section in self.sections((key,), key, self.schema["properties"][key]):
            level = "##" if section.path == (key,) else "###"
            help_text = section.node.get("description", "")
            made.append(f"{level} {section.heading}\n\n{help_text}\n\n{self.table(section)}")
        if not made or not made[0].startswith("## "):
            made.insert(0, f"## `{key}`\n\n{self.schema['properties'][key]['description']}")
        return "\n\n".join(made)

    def sections(self, path: Path, name: str, node: dict[str, Any]) -> Iterator[Section]:
        """The sections that a value has, itself first; of one that is written twice, the first."""
        if "$ref" in node:
            kind = node["$ref"].rpartition("/")[2]
            if not kind.endswith("Override"):
                yield from self.sections(path, name, self.schema["$defs"][kind])
            return
        for option in node.get("anyOf", ()):
            yield from self.sections(path, name, option)
        for inner in node.get("patternProperties", {}).values():
            yield from self.sections((*path, "*"), f"{name}.{FREE}", inner)
        if "items" in node:
            yield from self.sections((*path, "*"), f"{name}[]", node["items"])
        if "properties" in node:
            yield Section(path, name, node)
            for key, value in node["properties"].items():
                yield from self.sections((*path, key), f"{name}.{_shown_key(key, node)}", value)
                if _is_uniform(node):
                    break

    def table(self, section: Section) -> str:
        # What kind a thing is comes first.
        keys = dict(sorted(section.node["properties"].items(), key=lambda item: item[0] != "type"))
        shared = self.shared_reason(section, keys)
        rows = [
            self.row(section, key, node, tells_effect=self.effect_of((*section.path, key)) != ((), shared))
            for key, node in keys.items()
        ]
        body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
        notes = [f"{mark} {text}" for mark, text in MARKS.items() if mark in body]
        if shared and shared not in QUIET:
            which = "else here" if "*Redoes " in body else "here"
            notes.append(f"A change of anything {which} redoes nothing: {shared}.")
        return "\n\n".join([f"| key | value | default | |\n|---|---|---|---|\n{body}", *notes])

    def shared_reason(self, section: Section, keys: Iterable[str]) -> str:
        """Why most settings of a section redo nothing, when that is one reason: it is said once, below the table."""
        effects = [self.effect_of((*section.path, key)) for key in keys]
        reasons = {reason for stages, reason in effects if not stages}
        is_most = sum(not stages for stages, _ in effects) * 2 > len(effects)
        return next(iter(reasons)) if len(reasons) == 1 and is_most else ""

    def row(self, section: Section, key: str, node: dict[str, Any], *, tells_effect: bool) -> tuple[str, str, str, str]:
        path = (*section.path, key)
        title = ".".join(filter(None, [section.name, _shown_key(key, section.node)]))
        inner = next(self.sections(path, title, node), None)
        anchor = inner.anchor if inner else ""
        if not section.path and (inner or key in EXPLAINED):
            anchor = key
        name = f"[`{key}`](#{anchor})" if anchor else f"`{key}`"
        mark = _mark(path, None)
        refused = f" {mark}" if mark else ""
        is_required = key in section.node.get("required", ())
        default = "**required**" if is_required else _default(node)
        help_text = _escape(node.get("description") or self.resolve(node).get("description", ""))
        effect = self.effect(path, is_section=bool(anchor)) if tells_effect else ""
        return name + refused, self.value(path, node), default, " ".join(filter(None, [help_text, effect]))

    def resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        return found

    def value(self, path: Path, node: dict[str, Any]) -> str:
        """What may stand at a path, in words."""
        if "anyOf" in node:
            return " or ".join(dict.fromkeys(self.value(path, option) for option in node["anyOf"]))
        if "$ref" in node:
            return "as [`engine`](#engine)" if node["$ref"].endswith("Override") else "mapping"
        if node.get("type") == "array":
            return f"list of {_plural(self.value((*path, '*'), node['items']))}"
        if "patternProperties" in node:
            [pattern] = node["patternProperties"]
            return "mapping by [name](#names)" if pattern == NAME_PATTERN else "mapping"
        return _scalar(path, node)

    def effect_of(self, path: Path) -> tuple[tuple[str, ...], str]:
        return self.effects(".".join(map(str, path))) if self.effects else ((), "")

    def effect(self, path: Path, *, is_section: bool) -> str:
        """What a change of a setting costs."""
        stages, reason = self.effect_of(path)
        if stages:
            return f"*Redoes {', '.join(stages)}.*"
        return f"*Redoes nothing: {reason}.*" if reason and not is_section and reason not in QUIET else ""


def make_reference(
    devices: Iterable[str] = (), effects: Effects | None = None, presets: Iterable[Mapping[str, str]] = ()
) -> str:
    """The reference page in Markdown. `devices` are the values of `gpu`, `presets` rows of name, engine and pytorch."""
    from trtx.render import render

    page = _Page(make_plain_schema(), effects)
    return render(
        "recipe/reference.md.j2",
        overview=page.overview(),
        chapters={key: page.chapter(key) for key in page.schema["properties"]},
        devices=list(devices),
        presets=list(presets),
        aliases=", ".join(
            f"`{name}` is `{own}`"
            for name, own in (
                *ALIASES.items(),
                *((name, f"{one}, kv_cache: {kv}") for name, (one, kv) in COMPOSED.items()),
            )
        ),
        units={"sizes": list(SIZES), "durations": list(DURATIONS)},
        exit_codes=_exit_codes(),
    )


def _is_uniform(node: dict[str, Any]) -> bool:
    """Whether all keys of a section hold the same mapping, so that one table is for all."""
    kinds = {value.get("$ref") for value in node["properties"].values()}
    return len(node["properties"]) > 1 and len(kinds) == 1 and None not in kinds


def _shown_key(key: str, node: dict[str, Any]) -> str:
    return FREE if _is_uniform(node) else key


def _mark(path: Path, choice: Any) -> str:
    """The mark of a choice that is refused at a path, or of the key itself where `choice` is None; "" for all else."""
    for rule in RULES:
        if rule.path == path and rule.refuses(object() if choice is None else choice):
            return OTHER_BACKEND if rule.backend else NOT_YET
    return ""


def _escape(text: str) -> str:
    """A description as Markdown: stars and angle brackets mean themselves, code stays code."""
    return re.sub(r"(`[^`]*`)|([*<])", lambda match: match[1] or f"\\{match[2]}", text)


def _default(node: dict[str, Any]) -> str:
    value = node.get("default")
    if value is None:
        return ""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _scalar(path: Path, node: dict[str, Any]) -> str:
    if choices := node.get("enum") or [node[key] for key in ("const",) if key in node]:
        return ", ".join(f"`{choice}`{_mark(path, choice)}" for choice in choices)
    if "pattern" in node:
        return PATTERNS[node["pattern"]]
    kind = node.get("type")
    if kind is None:
        return ANYTHING
    if kind == "boolean":
        return "`false`, `true`" + _mark(path, True)
    bounds = [words.format(node[key]) for key, words in BOUNDS.items() if key in node]
    if mark := _mark(path, 2):
        bounds.append(f"more than 1{mark}")
    return ", ".join([TYPES[kind], *bounds])


def _plural(words: str) -> str:
    head, separator, rest = words.partition(",")
    if words.startswith("`") or words == ANYTHING:
        return words
    if head.startswith("["):
        return words.replace("]", "s]", 1)
    return f"{head}s{separator}{rest}"


def _exit_codes() -> list[tuple[int, str]]:
    classes = {cls.exit_code: (cls.__doc__ or "").strip().rstrip(".") for cls in reversed(BY_NAME.values())}
    own = {0: "Done", EXIT_PLAN_HAS_CHANGES: "The plan has changes (`--detailed-exitcode` only)"}
    return sorted({**classes, **own}.items())
