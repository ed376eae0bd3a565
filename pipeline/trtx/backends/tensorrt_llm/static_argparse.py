"""Options of argparse programs by reading their `add_argument` calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from trtx.backends.tensorrt_llm.source_tree import Function, Module, SourceTree, called_name, keyword
from trtx.backends.tensorrt_llm.static_classes import literal_choices
from trtx.backends.tensorrt_llm.static_values import Member, find_class, is_enum, members, read_value
from trtx.backends.tensorrt_llm.surface import Option, Unresolved

TYPES = {"int": "int", "float": "float", "str": "str", "bool": "bool", "Path": "path", "PurePath": "path"}
SKIPPED_ACTIONS = frozenset({"help", "version"})
PARSER_MAKERS = frozenset({"ArgumentParser", "add_argument_group", "add_mutually_exclusive_group"})
NARGS = {"REMAINDER": "...", "OPTIONAL": "?", "ZERO_OR_MORE": "*", "ONE_OR_MORE": "+"}
# How a switch of the plugins is written on the command line, and how "no plugin" is.
ON, OFF = "enable", "disable"


def read_argparse(tree: SourceTree, module: Module) -> tuple[Option, ...]:
    """The options of a program, in order. What cannot be read is noted in the tree's problems."""
    options: dict[str, Option] = {}
    for option in _Reader(tree, module).read(module.tree.body):
        options.setdefault(option.name, option)
    return tuple(options.values())


class _Reader:
    """Walks statements in order, through loops over known values and into the helpers that get a parser."""

    def __init__(self, tree: SourceTree, module: Module) -> None:
        self.tree = tree
        self.module = module
        self.parsers: set[str] = set()

    def read(self, body: list[ast.stmt], local: Mapping[str, Any] | None = None) -> Iterator[Option]:
        for statement in body:
            yield from self._statement(statement, local or {})

    def _statement(self, statement: ast.stmt, local: Mapping[str, Any]) -> Iterator[Option]:
        match statement:
            case ast.For(target=target, iter=values, body=body):
                yield from self._loop(statement, target, read_value(self.tree, self.module, values, local), body, local)
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                if called_name(call) in PARSER_MAKERS:
                    self.parsers.add(name)
                    return
        for node in _own_calls(statement):
            yield from self._call(node, local)
        for part in ("body", "orelse", "finalbody"):
            yield from self.read(getattr(statement, part, []), local)
        for handler in getattr(statement, "handlers", []):
            yield from self.read(handler.body, local)

    def _loop(
        self, loop: ast.For, target: ast.expr, values: Any, body: list[ast.stmt], local: Mapping[str, Any]
    ) -> Iterator[Option]:
        """What a loop adds: once for each value when these are known, else what it makes of a class's fields."""
        names = [each.id for each in ast.walk(target) if isinstance(each, ast.Name)]
        if isinstance(values, list):
            for value in values:
                parts = value if len(names) > 1 and isinstance(value, list) else [value]
                yield from self.read(body, {**local, **dict(zip(names, parts, strict=False))})
        elif _adds_arguments(loop):
            yield from self._from_fields(loop)

    def _call(self, call: ast.Call, local: Mapping[str, Any]) -> Iterator[Option]:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            option = read_add_argument(self.tree, self.module, call, local)
            if option is not None:
                yield option
            return
        passed = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
        name = called_name(call)
        if not self.parsers.intersection(passed) or name in self.module.functions:
            return  # A helper of this module is read where it stands.
        found = self.tree.imported(self.module, name)
        if found is None or found[1] not in found[0].functions:
            if not isinstance(call.func, ast.Attribute):
                self.tree.problems.append(f"{self.module.path}: {name}() adds options that cannot be read")
            return
        home, original = found
        yield from _Reader(self.tree, home).read(home.functions[original].body)

    def _from_fields(self, loop: ast.For) -> Iterator[Option]:
        """Options that a loop makes from the fields of a class: those of the plugins."""
        function = _enclosing(self.module, loop)
        for node in ast.walk(function or loop):
            found = find_class(self.tree, self.module, node) if isinstance(node, ast.Name) else None
            if found is not None and not is_enum(found[1]):
                yield from plugin_options(self.tree, *found, function or loop)
                return
        self.tree.problems.append(f"{self.module.path}:{loop.lineno}: options made by a loop cannot be read")


def _adds_arguments(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Attribute) and each.attr == "add_argument" for each in ast.walk(node))


def _enclosing(module: Module, loop: ast.For) -> Function | None:
    return next((each for each in module.functions.values() if any(node is loop for node in ast.walk(each))), None)


def _own_calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """Calls in the expressions of a statement, without those in statements inside it."""
    for _, value in ast.iter_fields(statement):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.expr):
                yield from (node for node in ast.walk(part) if isinstance(node, ast.Call))


def read_add_argument(tree: SourceTree, module: Module, call: ast.Call, local: Mapping[str, Any]) -> Option | None:
    """The option that one call adds; None for help and version, and for what has no readable name."""
    names = [read_value(tree, module, argument, local) for argument in call.args]
    if not names or not all(isinstance(name, str) for name in names):
        tree.problems.append(f"{module.path}:{call.lineno}: an option whose name is computed")
        return None
    action = _action(tree, module, call)
    if action in SKIPPED_ACTIONS:
        return None
    data: dict[str, Any] = {"flags": tuple(name for name in names if name.startswith("-"))}
    data["name"] = _destination(tree, module, call, names)
    if not data["flags"]:
        data["positional"] = True
    data |= _kind(tree, module, call, action, local)
    default = keyword(call, "default")
    if default is not None:
        data["default"] = None if called_name(default) == "SUPPRESS" else read_value(tree, module, default, local)
    if action == "BooleanOptionalAction":
        data["off_flags"] = tuple(f"--no-{flag[2:]}" for flag in data["flags"] if flag.startswith("--"))
    data |= _counts(tree, module, call)
    return Option(**data)


def _action(tree: SourceTree, module: Module, call: ast.Call) -> str:
    node = keyword(call, "action")
    value = read_value(tree, module, node)
    return value if isinstance(value, str) else called_name(node) if node is not None else "store"


def _destination(tree: SourceTree, module: Module, call: ast.Call, names: list[str]) -> str:
    given = read_value(tree, module, keyword(call, "dest"))
    if isinstance(given, str):
        return given
    return next((name for name in names if name.startswith("--")), names[0]).lstrip("-").replace("-", "_")


def _kind(tree: SourceTree, module: Module, call: ast.Call, action: str, local: Mapping[str, Any]) -> dict[str, Any]:
    """Type and choices; for a switch its usual default."""
    if action in ("store_true", "store_false", "BooleanOptionalAction"):
        usual = {"store_true": False, "store_false": True}.get(action)
        return {"type": "bool", "is_flag": True, "default": usual}
    if action in ("store_const", "count"):
        return {"is_flag": True, "type": "int" if action == "count" else "str"}
    data: dict[str, Any] = {"multiple": True} if action in ("append", "extend") else {}
    node, choices = keyword(call, "type"), keyword(call, "choices")
    enum = find_class(tree, module, node) if node is not None else None
    if choices is not None:
        known = read_value(tree, module, choices, local)
        data["choices"] = tuple(known) if isinstance(known, list) else known
    elif enum is not None and is_enum(enum[1]):
        data["choices"] = _member_words(members(tree, *enum), enum[1].name)
    if enum is not None and is_enum(enum[1]):
        return {**data, "type": "enum"}
    kind = TYPES.get(called_name(node), "str") if node is not None else "choice" if choices is not None else "str"
    return {**data, "type": kind} if kind != "str" else data


def _member_words(rows: list[Member], name: str) -> Any:
    words = tuple(row.word for row in rows)
    return words if all(isinstance(word, str | int) for word in words) else Unresolved(f"list({name})")


def _counts(tree: SourceTree, module: Module, call: ast.Call) -> dict[str, Any]:
    """How many values, whether they must be given, and what help says of the option's standing."""
    data: dict[str, Any] = {}
    nargs = keyword(call, "nargs")
    if nargs is not None:
        value = NARGS.get(called_name(nargs)) or read_value(tree, module, nargs)
        if isinstance(value, str | int):
            data["nargs"] = value
    const = read_value(tree, module, keyword(call, "const"))
    if const is not None and not isinstance(const, Unresolved):
        data["const"] = const
    if read_value(tree, module, keyword(call, "required")) is True:
        data["required"] = True
    text = keyword(call, "help")
    if text is not None and called_name(text) == "SUPPRESS":
        data["hidden"] = True
    shown = read_value(tree, module, text)
    if isinstance(shown, str) and "deprecated" in shown.lower():
        data["deprecated"] = True
    return data


def plugin_options(tree: SourceTree, module: Module, node: ast.ClassDef, function: ast.AST) -> Iterator[Option]:
    """One option a field of the plugins' class: switches as words, kinds of data with "disable" for none.

    `function` adds them. A list of its module that holds names of fields says which become options; lists and
    dictionaries of words say what each takes where the annotation does not.
    """
    from trtx.backends.tensorrt_llm.static_classes import read_class

    rows = read_class(tree, module, node).fields
    names = {row.name for row in rows}
    used = [each.id for each in ast.walk(function) if isinstance(each, ast.Name) and each.id in module.assigned]
    known = {name: read_value(tree, module, module.assigned[name]) for name in dict.fromkeys(used)}
    listed = next((value for value in known.values() if isinstance(value, list) and set(value) & names), None)
    by_name = next((value for value in known.values() if isinstance(value, dict) and value.keys() & names), {})
    general = next((value for value in known.values() if isinstance(value, list) and not set(value) & names), None)
    special = {each.value for each in ast.walk(function) if isinstance(each, ast.Constant) and each.value in names}
    annotations = {
        statement.target.id.lstrip("_"): statement.annotation
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    for row in rows:
        if listed is not None and row.name not in listed:
            continue
        flags = (f"--{row.name}",)
        if "bool" in row.type:
            default = {True: ON, False: OFF}.get(row.default) if isinstance(row.default, bool) else row.default
            yield Option(flags, row.name, "choice", default, (ON, OFF))
        elif "int" in row.type.replace("int32", ""):
            yield Option(flags, row.name, "int", row.default)
        else:
            choices = literal_choices(tree, module, annotations[row.name]) or by_name.get(row.name) or general
            words = None if choices is None else tuple(dict.fromkeys(OFF if word is None else word for word in choices))
            default = row.default
            if default is None:  # Whether "none" is written as a word is said by the function alone.
                default = Unresolved(f"{row.name} in {module.path}") if row.name in special else OFF
            yield Option(flags, row.name, "choice" if words else "str", default, words)
