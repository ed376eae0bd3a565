"""Changes to the text of a YAML file that leave every other byte as it is: comments, quotes, spaces, line ends.

Libraries that load and dump again (ruamel.yaml, for one) lay out afresh what they did not change: they fold long lines,
re-indent lists, close up flow mappings and lose the comments inside them. Here the parser only says where things stand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import yaml

from trtx.recipe.problems import Path

MERGE = "tag:yaml.org,2002:merge"


class Edit(NamedTuple):
    """Replace the characters from `start` up to `end`."""

    start: int
    end: int
    text: str


class Entry(NamedTuple):
    """One key of a mapping with its value, which is an alias when it stands elsewhere."""

    key: yaml.ScalarNode
    value: yaml.Node

    @property
    def is_alias(self) -> bool:
        return bool(self.value.start_mark.index < self.key.start_mark.index)


@dataclass(frozen=True)
class Layout:
    """A YAML text, which must be readable, and where its parts stand. Positions are indexes of characters."""

    text: str

    @cached_property
    def root(self) -> Any:
        # The parser in Python: its marks have an index of characters on every platform.
        return yaml.compose(self.text, Loader=yaml.SafeLoader)

    @cached_property
    def tokens(self) -> list[Any]:
        return list(yaml.scan(self.text, Loader=yaml.SafeLoader))

    @property
    def newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def raw(self, entry: Entry) -> str:
        """The value of an entry as it is written, anchors and quotes included."""
        return self.text[self.value_start(entry) : self.end(entry)]

    def value_start(self, entry: Entry) -> int:
        return int((self._alias(entry) if entry.is_alias else entry.value).start_mark.index)

    def end(self, entry: Entry) -> int:
        """Where an entry with a scalar, an alias or a flow collection ends."""
        return int((self._alias(entry) if entry.is_alias else entry.value).end_mark.index)

    def _alias(self, entry: Entry) -> Any:
        return self.token(yaml.AliasToken, after=entry.key.end_mark.index)

    def token(self, kind: type, *, after: int) -> Any:
        """The first token of a kind that starts at a position or after it; None if there is none."""
        return next((token for token in self._of(kind) if token.start_mark.index >= after), None)

    def token_before(self, kind: type, position: int) -> Any:
        """The last token of a kind that starts before a position; None if there is none."""
        return next((token for token in reversed(list(self._of(kind))) if token.start_mark.index < position), None)

    def _of(self, kind: type) -> Iterator[Any]:
        return (token for token in self.tokens if isinstance(token, kind))

    def content_end(self, node: yaml.Node) -> int:
        """Where the last value in a collection ends; a block's own end is where the next thing begins."""
        ends = (yaml.ScalarToken, yaml.AliasToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
        within = (t for t in self.tokens if isinstance(t, ends) and t.start_mark.index < node.end_mark.index)
        return max(int(token.end_mark.index) for token in within)

    def line_start(self, position: int) -> int:
        return self.text.rfind("\n", 0, position) + 1

    def line_end(self, position: int) -> int:
        """The position after the line break that follows, or the end of the text."""
        found = self.text.find("\n", position)
        return found + 1 if found >= 0 else len(self.text)

    def column(self, position: int) -> int:
        return position - self.line_start(position)

    def rest_of_line(self, position: int) -> str:
        return self.text[position : self.line_end(position)].rstrip("\r\n")


def entries(node: yaml.Node) -> list[Entry]:
    """The keys of a mapping that are written in it."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [Entry(key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]


def find_entry(node: yaml.Node, name: str) -> Entry | None:
    return next((entry for entry in entries(node) if entry.key.value == name), None)


def mappings(node: yaml.Node, path: Path) -> list[yaml.MappingNode]:
    """The mappings at a path, in which `*` is any key; one that several aliases or merges lead to comes once."""
    found: dict[int, yaml.MappingNode] = {}
    for inner in _descend(node, path):
        found.setdefault(id(inner), inner)
    return list(found.values())


def _descend(node: yaml.Node, path: Path) -> Iterator[yaml.MappingNode]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag == MERGE:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _descend(merged, path)
    if not path:
        yield node
        return
    for entry in entries(node):
        if path[0] in ("*", entry.key.value):
            yield from _descend(entry.value, path[1:])


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits made; edits at one place are made in their order. They must not overlap."""
    made, position = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        if edit.start < position:
            raise ValueError(f"edits overlap at {edit.start}")
        made += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*made, text[position:]])


def rename(layout: Layout, entry: Entry, name: str) -> Edit:
    """Give a key another name; quotes stay."""
    start, end = entry.key.start_mark.index, entry.key.end_mark.index
    raw = layout.text[start:end]
    return Edit(start, end, raw.replace(entry.key.value, name) if entry.key.value in raw else name)


def remove_entry(layout: Layout, mapping: yaml.MappingNode, entry: Entry) -> list[Edit]:
    """Take a key and its scalar value out of a mapping; a comment behind it stays."""
    start, end = entry.key.start_mark.index, layout.end(entry)
    if not mapping.flow_style:
        return [_remove_line(layout, start, end)]
    following = layout.token(yaml.FlowEntryToken, after=end)
    if following and following.start_mark.index < mapping.end_mark.index and not _between(layout, end, following):
        return [Edit(start, _skip_spaces(layout.text, following.end_mark.index), "")]
    before = layout.token_before(yaml.FlowEntryToken, start)
    is_first = before is None or before.start_mark.index < mapping.start_mark.index
    commas = [] if is_first else [Edit(before.start_mark.index, before.end_mark.index, "")]
    is_alone = not layout.text[layout.line_start(start) : start].strip()
    spaces = 0 if is_first or is_alone else start - len(layout.text[:start].rstrip(" "))
    return [*commas, Edit(start - spaces, end, "")]


def _between(layout: Layout, end: int, token: Any) -> bool:
    """Whether anything but spaces and comments stands between a value and the comma that should follow it."""
    gap = layout.text[end : token.start_mark.index]
    return bool(re.sub(r"#[^\n]*", "", gap).strip())


def _remove_line(layout: Layout, start: int, end: int) -> Edit:
    rest = layout.rest_of_line(end)
    if rest.strip():
        return Edit(start, end + len(rest) - len(rest.lstrip(" \t")), "")
    return Edit(layout.line_start(start), layout.line_end(end), "")


def _skip_spaces(text: str, position: int) -> int:
    """Where the spaces after a position end; the one before a comment counts as a part of it."""
    rest = text[position:]
    num_spaces = len(rest) - len(rest.lstrip(" "))
    return position + num_spaces - (num_spaces > 0 and rest[num_spaces : num_spaces + 1] == "#")


def indent_lines(layout: Layout, start: int, end: int, num_spaces: int) -> list[Edit]:
    """Move the lines of a part of the text to the right; `start` and `end` may be anywhere in its first and last."""
    found, position = [], layout.line_start(start)
    while position < end:
        if layout.rest_of_line(position).strip():
            found.append(Edit(position, position, " " * num_spaces))
        position = layout.line_end(position)
    return found


def comments(text: str) -> Counter[str]:
    """Every comment of a text, and how often it stands there."""
    found: Counter[str] = Counter()
    position = 0
    for token in Layout(text).tokens:
        if isinstance(token, yaml.BlockEndToken | yaml.BlockMappingStartToken | yaml.BlockSequenceStartToken):
            continue
        found.update(re.findall(r"#[^\r\n]*", text[position : token.start_mark.index]))
        position = max(position, token.end_mark.index)
    found.update(re.findall(r"#[^\r\n]*", text[position:]))
    return found
