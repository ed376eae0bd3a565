"""Commands of click programs by reading decorators: groups, commands, options and arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.backends.tensorrt_llm.source_tree import Function, Module, SourceTree, called_name, keyword
from trtx.backends.tensorrt_llm.static_values import find_class, is_enum, members, read_value
from trtx.backends.tensorrt_llm.surface import Option, Tool, Unresolved

TYPES = {
    "int": "int", "INT": "int", "IntRange": "int", "float": "float", "FLOAT": "float", "FloatRange": "float",
    "str": "str", "STRING": "str", "bool": "bool", "BOOL": "bool", "Path": "path", "File": "path",
}  # fmt: skip
STABILITIES = ("stable", "beta", "prototype", "deprecated")
MAX_NESTING = 6


@dataclass(frozen=True)
class Command:
    """A decorated function: its name for the shell, and the function that it is."""

    name: str
    module: Module
    function: Function
    is_group: bool


def read_click(tree: SourceTree, name: str, module: Module, entry: str) -> dict[str, Tool]:
    """The command lines of a click program by key; `entry` is the object that its entry point names."""
    commands = read_entry(tree, module, entry)
    if isinstance(commands, Command):
        return dict(_walk(tree, name, (), commands, 0))
    if not commands:
        return {}
    words = tuple(sorted(commands))
    default = _default_command(tree, module, entry, words)
    tools = {name: Tool(name, None, "click", (), (module.path,), words, default)}
    for word, command in commands.items():
        tools |= dict(_walk(tree, name, (word,), command, 0))
    return tools


def read_entry(tree: SourceTree, module: Module, entry: str) -> Command | dict[str, Command] | None:
    """What an entry point is: a decorated function, or a group made by a call with `commands={…}`."""
    found = tree.imported(module, entry)
    if found is None:
        return None
    home, original = found
    if original in home.functions:
        return read_command(tree, home, home.functions[original])
    value = home.assigned.get(original)
    table = keyword(value, "commands") if isinstance(value, ast.Call) else None
    if not isinstance(table, ast.Dict):
        return None
    commands: dict[str, Command] = {}
    for key, target in zip(table.keys, table.values, strict=True):
        word = read_value(tree, home, key)
        command = read_entry(tree, home, called_name(target))
        if isinstance(word, str) and isinstance(command, Command):
            commands[word] = command
    return commands


def _default_command(tree: SourceTree, module: Module, entry: str, words: tuple[str, ...]) -> str | None:
    """The command that a group of another class than click's runs when none is named: the one its class mentions."""
    found = tree.imported(module, entry)
    value = found[0].assigned.get(found[1]) if found else None
    group = find_class(tree, found[0], value.func) if found and isinstance(value, ast.Call) else None
    if group is None:
        return None
    texts = {node.value for node in ast.walk(group[1]) if isinstance(node, ast.Constant)}
    mentioned = [word for word in words if word in texts]
    return mentioned[0] if len(mentioned) == 1 else None


def _walk(
    tree: SourceTree, name: str, words: tuple[str, ...], command: Command, depth: int
) -> Iterator[tuple[str, Tool]]:
    children = subcommands(tree, command) if command.is_group and depth < MAX_NESTING else {}
    tool = Tool(
        name,
        " ".join(words) or None,
        "click",
        tuple(read_options(tree, command.module, command.function)),
        (command.module.path,),
        tuple(sorted(children)),
    )
    yield tool.key, tool
    for word, child in children.items():
        yield from _walk(tree, name, (*words, word), child, depth + 1)


def read_command(tree: SourceTree, module: Module, function: Function) -> Command | None:
    """The command that a function is decorated to be; None for a plain one."""
    for decorator in function.decorator_list:
        kind = called_name(decorator)
        if kind in ("command", "group"):
            call = decorator if isinstance(decorator, ast.Call) else None
            node = (keyword(call, "name") or (call.args[0] if call.args else None)) if call else None
            given = read_value(tree, module, node)
            name = given if isinstance(given, str) else function.name.lower().replace("_", "-")
            return Command(name, module, function, kind == "group")
    return None


def subcommands(tree: SourceTree, group: Command) -> dict[str, Command]:
    """Commands of a group: decorated with it, or added by `add_command`, in its own module."""
    found: dict[str, Command] = {}
    owner = group.function.name
    for function in group.module.functions.values():
        if any(_owner(decorator) == owner for decorator in function.decorator_list):
            command = read_command(tree, group.module, function)
            if command is not None:
                found[command.name] = command
    for node in ast.walk(group.module.tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="add_command"), args=[target, *_]) if (
                name == owner
            ):
                command = _find_command(tree, group.module, target)
                if command is not None:
                    given = read_value(
                        tree, group.module, keyword(node, "name") or (node.args[1] if len(node.args) > 1 else None)
                    )
                    found[given if isinstance(given, str) else command.name] = command
    return found


def _owner(decorator: ast.expr) -> str:
    """`main` of `@main.command(…)`."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.value.id if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) else ""


def _find_command(tree: SourceTree, module: Module, target: ast.expr) -> Command | None:
    """A command by name: a function, or a function of a class (`Task.command`)."""
    if isinstance(target, ast.Name):
        found = tree.imported(module, target.id)
        return (
            read_command(tree, found[0], found[0].functions[found[1]])
            if found and found[1] in found[0].functions
            else None
        )
    owner = find_class(tree, module, target.value) if isinstance(target, ast.Attribute) else None
    if owner is None or not isinstance(target, ast.Attribute):
        return None
    for statement in owner[1].body:
        if isinstance(statement, ast.FunctionDef) and statement.name == target.attr:
            return read_command(tree, owner[0], statement)
    return None


def read_options(tree: SourceTree, module: Module, function: Function) -> Iterator[Option]:
    """Options in the order of the decorators; a decorator that is a function of the tree adds those it makes."""
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call):
            yield from _shared(tree, module, called_name(decorator))
            continue
        kind = called_name(decorator)
        if kind == "argument":
            yield _argument(tree, module, decorator)
        elif kind.endswith("option") and kind != "version_option":
            option = read_option(tree, module, decorator)
            if option is not None:
                yield option
        elif kind not in ("command", "group"):
            yield from _shared(tree, module, kind)


def _shared(tree: SourceTree, module: Module, name: str) -> Iterator[Option]:
    """The options that a decorator of the tree itself applies."""
    found = tree.imported(module, name) if name else None
    if found is None:
        return
    home, original = found
    body: list[ast.AST] = []
    if original in home.functions:
        body = list(home.functions[original].body)
    elif original in home.assigned:  # A list of decorators.
        body = [home.assigned[original]]
    calls = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda each: (each.lineno, each.col_offset)):
        first = call.args[0] if call.args else None
        is_named = isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.startswith("-")
        if called_name(call).endswith("option") and is_named:
            option = read_option(tree, home, call)
            if option is not None:
                yield option


def _argument(tree: SourceTree, module: Module, call: ast.Call) -> Option:
    name = read_value(tree, module, call.args[0] if call.args else None)
    data = _kind(tree, module, call)
    nargs = read_value(tree, module, keyword(call, "nargs"))
    if isinstance(nargs, int) and not isinstance(nargs, bool):
        data["nargs"] = "*" if nargs == -1 else nargs
    if read_value(tree, module, keyword(call, "required")) is False:
        data["nargs"] = data.get("nargs", "?")
    return Option((), str(name).lower(), positional=True, **data)


def read_option(tree: SourceTree, module: Module, call: ast.Call) -> Option | None:
    """One option; None, with a note in the tree's problems, when its names are computed."""
    names = [read_value(tree, module, argument) for argument in call.args]
    if not names or not all(isinstance(name, str) for name in names):
        tree.problems.append(f"{module.path}:{call.lineno}: an option whose name is computed")
        return None
    pairs = [name.partition("/") for name in names if name.startswith("-")]
    flags = tuple(first.strip() for first, _, _ in pairs)
    off = tuple(last.strip() for _, _, last in pairs if last)
    data: dict[str, Any] = {"flags": flags, "name": _destination(names, flags)}
    switch = read_value(tree, module, keyword(call, "is_flag")) is True or (
        bool(off) and keyword(call, "is_flag") is None
    )
    data |= {"type": "bool", "is_flag": True, "default": False} if switch else _kind(tree, module, call)
    if off:
        data["off_flags"] = off
    if not switch and (flag_value := keyword(call, "flag_value")) is not None:
        data |= {"is_flag": True, "const": read_value(tree, module, flag_value)}
    if keyword(call, "default") is not None:
        data["default"] = read_value(tree, module, keyword(call, "default"))
    for word in ("required", "multiple", "hidden"):
        if read_value(tree, module, keyword(call, word)) is True:
            data[word] = True
    nargs = read_value(tree, module, keyword(call, "nargs"))
    if isinstance(nargs, int) and nargs != 1:
        data["nargs"] = nargs
    envvar = read_value(tree, module, keyword(call, "envvar"))
    if isinstance(envvar, str):
        data["envvar"] = envvar
    return Option(**data, **_standing(tree, module, call))


def _destination(names: list[str], flags: tuple[str, ...]) -> str:
    """click's rule: the name that is an identifier, else the first with the most dashes."""
    given = next((name for name in names if not name.startswith("-")), None)
    if given is not None:
        return given
    dashes = [len(flag) - len(flag.lstrip("-")) for flag in flags]
    return flags[dashes.index(max(dashes))].lstrip("-").replace("-", "_").lower()


def _kind(tree: SourceTree, module: Module, call: ast.Call) -> dict[str, Any]:
    """Type, choices and bounds; the type of the default where none is given, as click does."""
    node = keyword(call, "type")
    if node is None:
        default = read_value(tree, module, keyword(call, "default"))
        kind = {bool: "bool", int: "int", float: "float"}.get(type(default), "str")
        return {} if kind == "str" else {"type": kind}
    name = called_name(node)
    if name.lower().startswith("choice") and isinstance(node, ast.Call):
        return _choice(tree, module, node)
    kind = TYPES.get(name, "str")
    data: dict[str, Any] = {} if kind == "str" else {"type": kind}
    if name.endswith("Range") and isinstance(node, ast.Call):
        data |= _bounds(tree, module, node)
    return data


def _choice(tree: SourceTree, module: Module, node: ast.Call) -> dict[str, Any]:
    listed = keyword(node, "choices") or (node.args[0] if node.args else None)
    enum = find_class(tree, module, listed) if listed is not None else None
    if enum is not None and is_enum(enum[1]):  # click names the members.
        return {"type": "choice", "choices": tuple(member.name for member in members(tree, *enum))}
    known = read_value(tree, module, listed)
    data: dict[str, Any] = {"type": "choice", "choices": tuple(known) if isinstance(known, list) else known}
    second = keyword(node, "aliases") or (node.args[1] if len(node.args) > 1 else None)
    aliases = read_value(tree, module, second)
    if isinstance(aliases, Mapping) and aliases:
        data["choice_aliases"] = dict(aliases)
    return data


def _bounds(tree: SourceTree, module: Module, node: ast.Call) -> dict[str, Any]:
    data = {}
    for name, word, position in (("minimum", "min", 0), ("maximum", "max", 1)):
        positional = node.args[position] if len(node.args) > position else None
        value = read_value(tree, module, keyword(node, word) or positional)
        if isinstance(value, int | float) and not isinstance(value, bool):
            data[name] = value
    return data


def _standing(tree: SourceTree, module: Module, call: ast.Call) -> dict[str, Any]:
    """How stable the option is said to be: by `status=…`, or by the words its help is made with."""
    status = read_value(tree, module, keyword(call, "status"))
    text = keyword(call, "help")
    if isinstance(text, ast.Call):
        words = [read_value(tree, module, argument) for argument in text.args]
        status = next((word for word in words if word in STABILITIES), status)
    result: dict[str, Any] = {"stability": status} if status in STABILITIES else {}
    shown = read_value(tree, module, text)
    deprecated = read_value(tree, module, keyword(call, "deprecated"))
    named = isinstance(shown, str) and "deprecated" in shown.lower()
    if status == "deprecated" or named or (deprecated not in (None, False) and not isinstance(deprecated, Unresolved)):
        result["deprecated"] = True
    return result
