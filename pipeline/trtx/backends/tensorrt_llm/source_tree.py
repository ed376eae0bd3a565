"""A tree of Python sources that are read and never imported: modules, what they define, and where names come from."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "tensorrt_llm"
# A module of more is no source that people wrote.
MAX_MODULE_BYTES = 4 << 20
MAX_IMPORT_STEPS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One parsed file: what stands at its top level (inside `if` and `try` too), in order."""

    path: str
    tree: ast.Module
    assigned: Mapping[str, ast.expr]
    classes: Mapping[str, ast.ClassDef]
    functions: Mapping[str, Function]
    # Name → module path in dots and the name there; None for a module itself.
    imports: Mapping[str, tuple[str, str | None]]


@dataclass
class SourceTree:
    """A folder that holds `tensorrt_llm/`, and maybe the repository's other folders (`examples/` …).

    `roots` are folders that are looked into one after the other: site-packages, and where an image has the scripts.
    """

    roots: tuple[Path, ...]
    problems: list[str] = field(default_factory=list)

    def find(self, path: str) -> Path | None:
        """A file by its path in the repository."""
        return next((root / path for root in self.roots if (root / path).is_file()), None)

    def files(self, folder: str, pattern: str = "*.py") -> Iterator[str]:
        """Paths in the repository of the files below a folder, sorted; links are not followed out of it."""
        for root in self.roots:
            base = root / folder
            if base.is_dir() and not base.is_symlink():
                found = (path for path in base.rglob(pattern) if path.is_file() and not path.is_symlink())
                yield from sorted(path.relative_to(root).as_posix() for path in found)
                return

    def module(self, path: str) -> Module | None:
        """A parsed file; None when it is not there or no Python that this interpreter can read."""
        return _load(self, path)

    def imported(self, module: Module, name: str) -> tuple[Module, str] | None:
        """The module of this tree that defines a name which another one imports, and the name there."""
        current, wanted = module, name
        for _ in range(MAX_IMPORT_STEPS):
            if wanted in current.assigned or wanted in current.classes or wanted in current.functions:
                return current, wanted
            dotted, original = current.imports.get(wanted, ("", None))
            if not dotted or original is None:
                return None
            stem = dotted.replace(".", "/")
            found = self.module(f"{stem}.py") or self.module(f"{stem}/__init__.py")
            if found is None:
                return None
            current, wanted = found, original
        return None

    def __hash__(self) -> int:
        return id(self)


@functools.lru_cache(maxsize=4096)
def _load(tree: SourceTree, path: str) -> Module | None:
    file = tree.find(path)
    if file is None:
        return None
    try:
        if file.stat().st_size > MAX_MODULE_BYTES:
            raise ValueError(f"it has more than {MAX_MODULE_BYTES} bytes")
        return parse_module(path, file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        tree.problems.append(f"{path}: {error}")
        return None


def parse_module(path: str, text: str) -> Module:
    """Raises SyntaxError, and ValueError for what no text is."""
    tree = ast.parse(text)
    assigned: dict[str, ast.expr] = {}
    classes: dict[str, ast.ClassDef] = {}
    functions: dict[str, Function] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    for node in _statements(tree.body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                assigned[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                assigned[name] = value
            case ast.ClassDef(name=name):
                classes[name] = node
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                functions[name] = node
            case ast.ImportFrom():
                for alias in node.names:
                    imports[alias.asname or alias.name] = (_absolute(path, node), alias.name)
            case ast.Import():
                for alias in node.names:
                    imports[alias.asname or alias.name] = (alias.name, None)
    return Module(path, tree, assigned, classes, functions, imports)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module's top level, both branches of conditions included."""
    for node in body:
        match node:
            case ast.If():
                yield from _statements([*node.body, *node.orelse])
            case ast.Try():
                handlers = [statement for handler in node.handlers for statement in handler.body]
                yield from _statements([*handlers, *node.body, *node.orelse, *node.finalbody])
            case _:
                yield node


def _absolute(path: str, node: ast.ImportFrom) -> str:
    """The module that `from x import …` names, in dots from the root."""
    if not node.level:
        return node.module or ""
    parts = path.removesuffix(".py").split("/")
    base = parts[: len(parts) - node.level]
    return ".".join((*base, *((node.module,) if node.module else ())))


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a call's keyword argument."""
    return next((word.value for word in call.keywords if word.arg == name), None)


def called_name(node: ast.expr) -> str:
    """The last part of what is called or named: `option` of `click.option(…)`; "" for anything else."""
    target = node.func if isinstance(node, ast.Call) else node
    if isinstance(target, ast.Attribute):
        return target.attr
    return target.id if isinstance(target, ast.Name) else ""
