"""YAML → plain values and the place of every one of them.

The values are those of PyYAML's SafeLoader, less the surprises of YAML 1.1: `yes`, `on`, `012`, `1:30`, empty values
and duplicate keys are problems with an explanation. Tags are refused; anchors and merge keys work, within a bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import yaml

from trtx.recipe.problems import Mark, Path, Place, Problem, Source
from trtx.recipe.problems import dotted as dotted

# libyaml's parser where PyYAML was built with it (about five times faster).
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_CHARS = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000

# What YAML 1.1 takes for the end of a line, so that lines are counted as the parser counts them.
BREAKS = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

TAG = "tag:yaml.org,2002:"
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

# Numbers that every YAML reads alike.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]{0,30})")
FLOAT = re.compile(r"[-+]?([0-9][0-9_]{0,30}\.[0-9_]{0,30}|\.[0-9]{1,30})([eE][-+][0-9]{1,2})?")

# What the scanner says → what is usually wrong. Matched as a part of PyYAML's or libyaml's message.
SYNTAX_FIXES = (
    ("mapping values are not allowed", "quote a text that holds ': ', or check the indentation of this line"),
    ("could not find expected ':'", "write 'key: value', with a space after the colon"),
    ("cannot start any token", "quote a text that begins with @, `, % or a tab"),
    ("did not find expected key", "align this line with the keys above it, or close the bracket or quote before it"),
    ("expected <block end>", "align this line with the keys above it, or close the bracket or quote before it"),
    ("did not find expected ','", "close the bracket"),
    ("expected ',' or", "close the bracket"),
    ("unexpected end of stream", "close the quote"),
    ("undefined alias", "define the anchor with &name before the alias *name"),
    ("duplicate anchor", "give every anchor its own name"),
    ("single document", "keep one document per file: remove the second '---'"),
    ("escape character", "use single quotes, in which a backslash is a backslash"),
)


class Unreadable(Exception):
    """The text cannot be read at all; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what)
        self.problem = problem


@dataclass(frozen=True)
class _Delete:
    """What `null` stands for in a file that extends another."""


DELETE = _Delete()
NO_SOURCE = Source("", ())
TOP = Mark(1, 1)


@dataclass
class Tree:
    """What a text says, or several that were put together: plain values and the place of each.

    `broken` are paths whose value is already reported and stands here as None; `traps` what was wrong with them in
    one word. `hidden` are the values that came from the environment, by path, as the reference that stands for them
    in messages; `secrets` the same by the value's text. `removed` says who took away what a base had.
    """

    source: Source
    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)
    traps: list[str] = field(default_factory=list)
    hidden: dict[Path, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    removed: dict[Path, str] = field(default_factory=dict)

    def problem(self, mark: Mark, what: str, *, why: str = "", fix: str = "", path: Path = ()) -> Problem:
        """A problem at a place of this tree's own text."""
        return self.source.problem(mark, what, why=why, fix=fix, path=path)

    def problem_at(self, path: Path, what: str, *, why: str = "", fix: str = "", at_key: bool = False) -> Problem:
        """A problem about the value (or key) at a path, or the nearest around it when there is none."""
        place = self.place(path)
        what, why, fix = (self.hide(text) for text in (what, why, fix))
        if at_key and place.key:
            return (place.key_source or place.source).problem(place.key, what, why=why, fix=fix, path=path)
        return place.source.problem(place.value, what, why=why, fix=fix, path=path, note=place.note)

    def place(self, path: Path) -> Place:
        """Where a value stands; for one that is not in the file, the nearest value around it."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path) or Place(TOP, None, self.source)

    def is_broken(self, path: Path) -> bool:
        """Whether something is already reported about the value at a path, or one around it."""
        return bool(self.broken) and any(path[:length] in self.broken for length in range(len(path) + 1))

    def hide(self, text: str) -> str:
        """A message without the values of environment variables, which may be secrets."""
        for value, shown in sorted(self.secrets.items(), key=lambda secret: -len(secret[0])):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", shown.replace("\\", r"\\"), text)
        return text


def read_tree(file: str, text: str) -> Tree:
    """Parse YAML. Problems that leave the rest readable are collected in the tree.

    Raises Unreadable for a syntax error, an empty text, and expansions out of bounds.
    """
    tree = Tree(Source(file, BREAKS.split(text)))
    node = _compose(tree, text, TOP)
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value and not node.style):
        raise Unreadable(tree.problem(TOP, "the file is empty", fix="`trtx init` writes a recipe to start from"))
    _Builder(tree, TOP).build_root(node)
    return tree


def read_value(source: Source, start: Mark, text: str, path: Path) -> Tree:
    """Parse one value that stands in another text: in an option, or in a variable of the environment.

    `start` is where it begins in `source`, `path` where it will stand in the recipe; so are the paths of the tree.
    Raises Unreadable.
    """
    tree = Tree(source)
    node = _compose(tree, text, start)
    if node is None:
        tree.traps.append("null")
        raise Unreadable(tree.problem(start, "there is no value", fix="write one", path=path))
    tree.data = _Builder(tree, start).build(node, path, None)
    return tree


def _compose(tree: Tree, text: str, start: Mark) -> yaml.Node | None:
    try:
        _check_depth(tree, text, start)
        return yaml.compose(text, Loader=LOADER)
    except yaml.reader.ReaderError as error:
        before = BREAKS.split(text[: error.position])
        mark = _shift(Mark(len(before), len(before[-1]) + 1), start)
        shown = f"U+{error.character if isinstance(error.character, int) else ord(error.character):04X}"
        what = f"the character {shown} is not allowed in YAML"
        raise Unreadable(tree.problem(mark, what, fix="remove it, or write it as an escape in double quotes")) from None
    except yaml.MarkedYAMLError as error:
        raise Unreadable(_syntax_problem(tree, error, start)) from None


def _check_depth(tree: Tree, text: str, start: Mark) -> None:
    """Refuse deep nesting before composing, which is recursive and would overflow libyaml's C stack."""
    if len(text) > MAX_CHARS:
        raise Unreadable(tree.problem(start, f"the file is larger than {MAX_CHARS >> 20} MiB", fix="shorten it"))
    if sum(text.count(opener) for opener in "[{:-?") < 1000:
        return
    depth = 0
    for event in _parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            mark = _shift(_point(event.start_mark), start)
            raise Unreadable(tree.problem(mark, f"more than {MAX_DEPTH} levels of nesting", fix="no recipe needs them"))


def _parse(text: str) -> Iterator[yaml.Event]:
    """The events of a text. Newer libyaml gives up at 1,000 levels before it tells of any of them: a shorter text is
    read then, in which the first hundred are left."""
    count = 0
    try:
        for event in yaml.parse(text, Loader=LOADER):
            yield event
            count += 1
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        if mark is None or "nesting depth" not in str(error.problem):
            raise
        yield from islice(yaml.parse(text[: max(0, mark.index - 900)], Loader=LOADER), count, None)


def _syntax_problem(tree: Tree, error: yaml.MarkedYAMLError, start: Mark) -> Problem:
    mark = tree.source.within(_shift(_point(error.problem_mark or error.context_mark), start))
    source = tree.source.line(mark)
    if "\t" in source[: mark.col] and not source[: mark.col].strip():
        return tree.problem(mark, "a tab is used for indentation", why="YAML allows only spaces", fix="use spaces")
    if source[max(0, mark.col - 2) : mark.col] == "${":
        shown = source[mark.col - 2 : source.find("}", mark.col) + 1 or None]
        what, why = (
            "a reference stands in brackets without quotes",
            "within { } and [ ] YAML takes its brace for its own",
        )
        return tree.problem(Mark(mark.line, mark.col - 1, len(shown)), what, why=why, fix=f'write "{shown}"')
    said = f"{error.context or ''} {error.problem or ''}"
    fix = next((fix for part, fix in SYNTAX_FIXES if part in said), "check quotes, brackets and indentation")
    why = error.context or ""
    if why and error.context_mark and error.context_mark.line + start.line != mark.line:
        why += f" that begins in line {error.context_mark.line + start.line}"
    return tree.problem(mark, f"this is not YAML: {error.problem or error.context}", why=why, fix=fix)


def _point(mark: Any) -> Mark:
    """A mark of PyYAML, which counts from 0, or None."""
    return Mark(mark.line + 1, mark.column + 1) if mark else TOP


def _shift(mark: Mark, start: Mark) -> Mark:
    """A mark of a text that begins at `start` of another. What has no line there is shown where the text begins."""
    if start is TOP:
        return mark
    return Mark(start.line, start.col + mark.col - 1, mark.width) if mark.line == 1 else start


def _mark(node: yaml.Node) -> Mark:
    start, end = node.start_mark, node.end_mark
    same_line = isinstance(node, yaml.ScalarNode) and start.line == end.line
    return Mark(start.line + 1, start.column + 1, max(1, end.column - start.column) if same_line else 1)


class _Builder:
    """Walks composed nodes; one value per node and path."""

    def __init__(self, tree: Tree, start: Mark) -> None:
        self.tree = tree
        self.start = start
        self.extends = False
        self.num_values = 0
        self.open_nodes: list[yaml.Node] = []

    def build_root(self, node: yaml.Node) -> None:
        tree = self.tree
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a text"
            fix = "begin with `schema: trtx/v1`; `trtx init` writes a recipe to start from"
            raise Unreadable(tree.problem(self.mark(node), f"a recipe is a mapping, and this is {kind}", fix=fix))
        self.extends = any(key.value == "extends" for key, _ in node.value)
        tree.data = self.build(node, (), None)

    def mark(self, node: yaml.Node) -> Mark:
        mark = _mark(node)
        return mark if self.start is TOP else _shift(mark, self.start)

    def build(self, node: yaml.Node, path: Path, key: Mark | None) -> Any:
        mark = self.mark(node)
        self.tree.places[path] = Place(mark, key, self.tree.source)
        self.count(node, path, key or mark)
        self.open_nodes.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self.build_mapping(node, path)
            if isinstance(node, yaml.ScalarNode):
                return self.build_scalar(node, path, key or mark)
            self.check_tag(node, "seq", path)
            return [self.build(item, (*path, index), None) for index, item in enumerate(node.value)]
        finally:
            self.open_nodes.pop()

    def count(self, node: yaml.Node, path: Path, mark: Mark) -> None:
        """Keep the walk finite. Raises Unreadable."""
        self.num_values += 1
        if node in self.open_nodes:
            raise Unreadable(self.tree.problem(mark, "an anchor contains itself", fix="remove the alias"))
        if len(path) > MAX_DEPTH:
            raise Unreadable(self.tree.problem(mark, f"more than {MAX_DEPTH} levels of nesting"))
        if self.num_values > MAX_VALUES:
            what = f"the file expands to more than {MAX_VALUES} values"
            raise Unreadable(self.tree.problem(mark, what, fix="use fewer aliases"))

    def build_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        self.check_tag(node, "map", path)
        built: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self.read_key(key_node, path)
            if key is None:
                continue
            if key in built:
                self.report_duplicate(key_node, (*path, key))
            else:
                built[key] = self.build(value_node, (*path, key), self.mark(key_node))
        for source in merged:
            self.merge(built, source, path)
        return built

    def merge(self, built: dict[str, Any], source: yaml.Node, path: Path) -> None:
        """`<<: *anchor` (https://yaml.org/type/merge.html): keys of the mapping itself win, then the first source."""
        if not isinstance(source, yaml.MappingNode):
            self.report(self.mark(source), "'<<' merges mappings, and this is none", path=path)
            return
        self.count(source, path, self.mark(source))
        places = dict(self.tree.places)
        extra = self.build_mapping(source, path)
        for key, value in extra.items():
            built.setdefault(key, value)
        self.tree.places.update(places)

    def read_key(self, node: yaml.Node, path: Path) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == TAG + "str":
            return str(node.value)
        if not isinstance(node, yaml.ScalarNode):
            self.report(self.mark(node), "a key must be a text", path=path)
        elif node.tag == TAG + "bool" and node.value not in BOOLEANS:
            why = f"YAML 1.1 reads the key {node.value} as {_yaml11_bool(node.value)}"
            is_free = path[:1] in (("vars",), ("matrix",))
            fix = f'write "{node.value}":' if is_free else "no key of a recipe has this name"
            self.report(self.mark(node), f"the key '{node.value}' is not a text", why, fix, path)
        else:
            why = f"YAML reads {node.value or 'an empty key'} as {node.tag.removeprefix(TAG)}"
            self.report(self.mark(node), f"the key '{node.value}' is not a text", why, f'write "{node.value}":', path)
        return None

    def report_duplicate(self, node: yaml.Node, path: Path) -> None:
        first = self.tree.places[path].key
        line = first.line if first else "an earlier line"
        why = f"it already stands in line {line}; YAML would silently keep one of the two"
        self.report(self.mark(node), f"the key '{node.value}' is given twice", why, "remove one", path)

    def check_tag(self, node: yaml.Node, kind: str, path: Path) -> None:
        if node.tag != TAG + kind:
            self.report(
                self.mark(node),
                f"the tag {_short_tag(node.tag)} is not allowed",
                "a recipe is plain data",
                "remove it",
                path,
            )

    def build_scalar(self, node: yaml.ScalarNode, path: Path, key: Mark) -> Any:
        kind, text, mark = node.tag.removeprefix(TAG), node.value, self.mark(node)
        if kind in ("str", "timestamp", "value"):
            return text
        if kind == "bool" and text in BOOLEANS:
            return BOOLEANS[text]
        if kind == "int" and INTEGER.fullmatch(text):
            return int(text)
        if kind == "float" and FLOAT.fullmatch(text):
            return float(text.replace("_", ""))
        if kind == "null" and text and self.extends and isinstance(path[-1], str):
            return DELETE
        self.tree.broken.add(path)
        self.tree.traps.append(kind)
        if kind == "null":
            fix = "write a value, or remove the key; {} takes all defaults of a section"
            if self.extends:
                fix = "write a value; null takes away what a base says, {} takes all defaults of a section"
            self.report(key, f"'{dotted(path)}' has no value", "", fix, path)
        elif kind == "bool":
            meaning = _yaml11_bool(text)
            why = f"YAML 1.1 reads {text} as {meaning}, YAML 1.2 as a text"
            self.report(mark, f"{text} is ambiguous", why, f'write {meaning}, or "{text}" for the text', path)
        elif kind in ("int", "float"):
            why = f"YAML 1.1 reads {text} as {_yaml11_number(node)}"
            self.report(
                mark, f"{text} is not a plain number", why, f'write a decimal number, or "{text}" for a text', path
            )
        else:
            self.report(
                mark, f"the tag {_short_tag(node.tag)} is not allowed", "a recipe is plain data", "remove it", path
            )
        return None

    def report(self, mark: Mark, what: str, why: str = "", fix: str = "", path: Path = ()) -> None:
        self.tree.problems.append(self.tree.problem(mark, what, why=why, fix=fix, path=path))


def _yaml11_bool(text: str) -> str:
    return "true" if text.lower() in ("yes", "on", "true", "y") else "false"


def _yaml11_number(node: yaml.ScalarNode) -> str:
    try:
        return str(yaml.constructor.SafeConstructor().construct_document(node))
    except (ValueError, yaml.YAMLError):
        return "a number"


def _short_tag(tag: str) -> str:
    return "!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag
