"""Values of expressions, found by reading: constants, names, enumerations, defaults of classes. What would have to run
stays `Unresolved`, with the expression; nothing is guessed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.backends.tensorrt_llm.source_tree import Module, SourceTree, called_name, keyword
from trtx.backends.tensorrt_llm.surface import Unresolved

MAX_DEPTH = 40
MAX_EXPRESSION = 120
# An exponent or a repetition beyond these is no default of an option.
MAX_NUMBER = 1 << 64
MAX_LENGTH = 10_000

OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
}
ENUM_BASES = frozenset({"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag", "StrBaseEnum", "BaseEnumMeta", "BaseEnum"})


class CannotTell(Exception):
    """An expression whose value only running it would show."""


@dataclass(frozen=True)
class Member:
    """A member of an enumeration: its name, and its value where that is known."""

    enum: str
    name: str
    value: Any

    @property
    def word(self) -> Any:
        """What a command line calls it: its value, which `type=EnumClass` looks up."""
        return self.value


def show(node: ast.expr) -> Unresolved:
    """An expression that was not resolved."""
    return Unresolved(ast.unparse(node)[:MAX_EXPRESSION])


def read_value(tree: SourceTree, module: Module, node: ast.expr | None, local: Mapping[str, Any] | None = None) -> Any:
    """The value of an expression as JSON has it (tuples and sets are lists), or Unresolved."""
    if node is None:
        return None
    try:
        return plain(evaluate(tree, module, node, dict(local or {})))
    except CannotTell:
        return show(node)


def plain(value: Any) -> Any:
    """A value without members of enumerations, tuples and sets."""
    if isinstance(value, Member):
        if isinstance(value.value, str | int | float):
            return value.value
        raise CannotTell
    if isinstance(value, dict):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value


def evaluate(tree: SourceTree, module: Module, node: ast.expr, local: dict[str, Any], depth: int = 0) -> Any:
    """Raises CannotTell."""
    if depth > MAX_DEPTH:
        raise CannotTell
    return _Evaluator(tree, module, local, depth).visit(node)


class _Evaluator(ast.NodeVisitor):
    """One kind of expression a method; every other kind cannot be told."""

    def __init__(self, tree: SourceTree, module: Module, local: dict[str, Any], depth: int) -> None:
        self.tree, self.module, self.local, self.depth = tree, module, local, depth

    def inner(self, node: ast.expr, names: dict[str, Any] | None = None) -> Any:
        return evaluate(self.tree, self.module, node, self.local if names is None else names, self.depth + 1)

    def generic_visit(self, node: ast.AST) -> Any:
        raise CannotTell

    def visit_Constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, str | int | float | bool | None):
            return node.value
        raise CannotTell

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.inner(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if isinstance(node.op, ast.USub) and isinstance(value, int | float):
            return -value
        raise CannotTell

    def visit_List(self, node: ast.List | ast.Tuple | ast.Set) -> Any:
        return _items(node.elts, self.inner)

    visit_Tuple = visit_List
    visit_Set = visit_List

    def visit_Dict(self, node: ast.Dict) -> Any:
        return _mapping(node.keys, node.values, self.inner)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        return _combine(node.op, self.inner(node.left), self.inner(node.right))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return "".join(_part(part, self.inner) for part in node.values)

    def visit_Name(self, node: ast.Name) -> Any:
        return self.local[node.id] if node.id in self.local else _named(self.tree, self.module, node.id, self.depth)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return _attribute(self.tree, self.module, node.value, node.attr, self.inner, self.depth)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        return _item(self.inner(node.value), self.inner(node.slice))

    def visit_Call(self, node: ast.Call) -> Any:
        return _call(self.tree, self.module, node, self.inner)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Any:
        return _comprehension(node, self.inner, self.local)

    visit_SetComp = visit_ListComp
    visit_GeneratorExp = visit_ListComp


def _items(nodes: list[ast.expr], inner: Callable[..., Any]) -> list[Any]:
    result: list[Any] = []
    for item in nodes:
        if isinstance(item, ast.Starred):
            value = inner(item.value)
            if not isinstance(value, list | tuple):
                raise CannotTell
            result.extend(value)
        else:
            result.append(inner(item))
    return result


def _mapping(keys: list[ast.expr | None], values: list[ast.expr], inner: Callable[..., Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in zip(keys, values, strict=True):
        if key is None:
            more = inner(value)
            if not isinstance(more, dict):
                raise CannotTell
            result.update(more)
            continue
        name = inner(key)
        if not isinstance(name, str | int | float | bool | None | Member):
            raise CannotTell
        try:
            result[name] = inner(value)
        except CannotTell:  # The keys are what choices are made of.
            result[name] = show(value)
    return result


def _combine(op: ast.operator, left: Any, right: Any) -> Any:
    function = OPERATORS.get(type(op))
    if isinstance(op, ast.Pow) and isinstance(left, int | float) and isinstance(right, int) and 0 <= right <= 64:
        function = operator.pow
    if isinstance(op, ast.LShift) and (not isinstance(right, int) or right > 64):
        raise CannotTell
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    texts = type(left) is type(right) and isinstance(left, str | list | dict)
    if function is None or not (numbers or texts):
        raise CannotTell
    try:
        result = function(left, right)
    except (TypeError, ValueError, ArithmeticError):
        raise CannotTell from None
    too_large = isinstance(result, int | float) and abs(result) > MAX_NUMBER
    if too_large or (isinstance(result, str | list) and len(result) > MAX_LENGTH):
        raise CannotTell
    return result


def _part(part: ast.expr, inner: Callable[..., Any]) -> str:
    if isinstance(part, ast.FormattedValue):
        if part.format_spec is not None or part.conversion != -1:
            raise CannotTell
        value = inner(part.value)
        if not isinstance(value, str | int):
            raise CannotTell
        return str(value)
    return str(inner(part))


def _named(tree: SourceTree, module: Module, name: str, depth: int) -> Any:
    found = tree.imported(module, name)
    if found is None:
        raise CannotTell
    home, original = found
    if original in home.assigned:
        return evaluate(tree, home, home.assigned[original], {}, depth + 1)
    raise CannotTell


def is_enum(node: ast.ClassDef) -> bool:
    return any(called_name(base) in ENUM_BASES for base in node.bases)


def find_class(tree: SourceTree, module: Module, node: ast.expr) -> tuple[Module, ast.ClassDef] | None:
    """The class that a name or the last part of a dotted one means."""
    name = called_name(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    found = tree.imported(module, name) if name else None
    if found is None or found[1] not in found[0].classes:
        return None
    return found[0], found[0].classes[found[1]]


def members(tree: SourceTree, home: Module, node: ast.ClassDef) -> list[Member]:
    """The members of an enumeration in order; `auto()` of one of texts is the name in lower case, else not known."""
    texts = any(called_name(base) in ("StrEnum", "StrBaseEnum") for base in node.bases)
    result = []
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if not name.startswith("_"):
                if isinstance(value, ast.Call) and called_name(value) == "auto":
                    shown: Any = name.lower() if texts else None
                else:
                    shown = read_value(tree, home, value)
                result.append(Member(node.name, name, shown))
    return result


def _attribute(
    tree: SourceTree, module: Module, base: ast.expr, attribute: str, inner: Callable[..., Any], depth: int
) -> Any:
    if attribute in ("value", "name"):
        value = inner(base)
        if isinstance(value, Member):
            return value.value if attribute == "value" else value.name
        raise CannotTell
    match base:
        case ast.Subscript(value=ast.Attribute(value=owner, attr="model_fields"), slice=index) if (
            attribute == "default"
        ):
            parent = find_class(tree, module, owner)
            name = inner(index)
            if parent is None or not isinstance(name, str):
                raise CannotTell
            return class_default(tree, *parent, name, depth)
    found = find_class(tree, module, base)
    if found is None:
        raise CannotTell
    home, node = found
    if is_enum(node):
        for member in members(tree, home, node):
            if member.name == attribute:
                return member
        raise CannotTell
    return class_default(tree, home, node, attribute, depth)


def class_default(tree: SourceTree, home: Module, node: ast.ClassDef, name: str, depth: int = 0) -> Any:
    """The value that a class gives one of its fields: plain, by `field(default=…)` or `Field(default=…)`."""
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=found), value=value) if found == name and value is not None:
                return _field_default(tree, home, value, depth)
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return _field_default(tree, home, value, depth)
    for base in node.bases:
        parent = find_class(tree, home, base)
        if parent is not None and depth < MAX_DEPTH:
            return class_default(tree, *parent, name, depth + 1)
    raise CannotTell


def _field_default(tree: SourceTree, home: Module, value: ast.expr, depth: int) -> Any:
    if isinstance(value, ast.Call) and called_name(value).lower().endswith("field"):
        default = keyword(value, "default") or (value.args[0] if value.args else None)
        if default is None:
            raise CannotTell
        value = default
    return evaluate(tree, home, value, {}, depth + 1)


def _item(container: Any, key: Any) -> Any:
    if not isinstance(container, dict | list):
        raise CannotTell
    try:
        value = container[key]
    except (KeyError, IndexError, TypeError):
        raise CannotTell from None
    if isinstance(value, Unresolved):
        raise CannotTell
    return value


def _call(tree: SourceTree, module: Module, node: ast.Call, inner: Callable[..., Any]) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="list" | "tuple" | "set" | "sorted" | "frozenset" as kind), args=[argument]):
            values = _iterate(tree, module, argument, inner)
            return sorted(values, key=str) if kind in ("sorted", "set", "frozenset") else values
        case ast.Call(func=ast.Name(id="range"), args=arguments) if arguments:
            bounds = [inner(argument) for argument in arguments]
            if all(isinstance(bound, int) for bound in bounds) and len(range(*bounds)) <= MAX_LENGTH:
                return list(range(*bounds))
        case ast.Call(func=ast.Name(id="int" | "float" | "str" as kind), args=[argument]):
            value = inner(argument)
            try:
                return {"int": int, "float": float, "str": str}[kind](value)
            except (TypeError, ValueError):
                raise CannotTell from None
        case ast.Call(func=ast.Attribute(attr="keys" | "values" as part, value=base), args=[]):
            mapping = _iterate_mapping(tree, module, base, inner)
            return list(mapping) if part == "keys" else list(mapping.values())
        case ast.Call(func=ast.Attribute(attr="lower" | "upper" as part, value=base), args=[]):
            text = inner(base)
            if isinstance(text, str):
                return text.lower() if part == "lower" else text.upper()
    raise CannotTell


def _iterate_mapping(tree: SourceTree, module: Module, base: ast.expr, inner: Callable[..., Any]) -> dict[Any, Any]:
    if isinstance(base, ast.Attribute) and base.attr == "__members__":
        found = find_class(tree, module, base.value)
        if found is not None and is_enum(found[1]):
            return {member.name: member for member in members(tree, *found)}
    value = inner(base)
    if isinstance(value, dict):
        return value
    raise CannotTell


def _iterate(tree: SourceTree, module: Module, node: ast.expr, inner: Callable[..., Any]) -> list[Any]:
    found = find_class(tree, module, node)
    if found is not None and is_enum(found[1]):
        return list(members(tree, *found))
    if isinstance(node, ast.Attribute) and node.attr == "__members__":
        return list(_iterate_mapping(tree, module, node, inner))
    value = inner(node)
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return list(value)
    raise CannotTell


def _comprehension(
    node: ast.ListComp | ast.SetComp | ast.GeneratorExp, inner: Callable[..., Any], local: dict[str, Any]
) -> list[Any]:
    if len(node.generators) != 1 or node.generators[0].ifs:
        raise CannotTell
    generator = node.generators[0]
    if not isinstance(generator.target, ast.Name):
        raise CannotTell
    name = generator.target.id
    source = inner(ast.Call(func=ast.Name(id="list"), args=[generator.iter], keywords=[]))
    return [inner(node.elt, {**local, name: value}) for value in source]
