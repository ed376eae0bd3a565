"""Reads the surface of an installed TensorRT-LLM from its Python sources. Nothing of it is imported or run."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.source_tree import PACKAGE, Module, SourceTree, called_name, keyword
from trtx.backends.tensorrt_llm.static_argparse import read_argparse
from trtx.backends.tensorrt_llm.static_classes import read_schemas
from trtx.backends.tensorrt_llm.static_click import read_click
from trtx.backends.tensorrt_llm.static_values import is_enum, members, read_value
from trtx.backends.tensorrt_llm.surface import Surface, Tool
from trtx.errors import UsageProblem

# Console commands of an installation without entry points (a checkout).
ENTRY_POINTS = {
    "trtllm-build": "tensorrt_llm.commands.build:main",
    "trtllm-refit": "tensorrt_llm.commands.refit:main",
    "trtllm-prune": "tensorrt_llm.commands.prune:main",
    "trtllm-bench": "tensorrt_llm.commands.bench:main",
    "trtllm-serve": "tensorrt_llm.commands.serve:main",
    "trtllm-eval": "tensorrt_llm.commands.eval:main",
}
SCRIPTS = {
    "quantize.py": "examples/quantization/quantize.py",
    "quantize_mixed_precision_moe.py": "examples/quantization/quantize_mixed_precision_moe.py",
    "run.py": "examples/run.py",
    "summarize.py": "examples/summarize.py",
    "benchmarks/cpp/prepare_dataset.py": "benchmarks/cpp/prepare_dataset.py",
}
CONVERTER = "convert_checkpoint.py"
CLASS_FOLDERS = ("llmapi", "hlapi")
CLASS_FILES = (
    "builder.py",
    "plugin/plugin.py",
    "models/modeling_utils.py",
    "lora_manager.py",
    "lora_helper.py",
    "sampling_params.py",
)
SCRIPT_FOLDERS = ("examples", "benchmarks")
# Folders of an image in which the package or the scripts are looked for; deeper ones are not.
MAX_DEPTH = 9
SKIPPED_FOLDERS = frozenset({"proc", "sys", "dev", "run", "tmp", "__pycache__", "node_modules", ".git", "libs"})
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.dev|\.post)\d+)*(\+[\w.]+)?", re.ASCII)


def find_tree(folder: Path) -> SourceTree:
    """The sources below a folder: a site-packages folder, the package itself, a checkout, or an image's root.

    Raises UsageProblem when there is no `tensorrt_llm/version.py` below it.
    """
    if not folder.is_dir():
        raise UsageProblem(f"there is no folder {folder}", fix="name a site-packages folder or an unpacked image")
    if folder.name == PACKAGE and (folder / "version.py").is_file():
        folder = folder.resolve().parent
    if (folder / PACKAGE / "version.py").is_file():
        return SourceTree((folder, *_script_roots(folder)))
    packages = [path for path in _walk(folder) if path.name == PACKAGE and (path / "version.py").is_file()]
    if not packages:
        raise UsageProblem(
            f"{folder} holds no TensorRT-LLM",
            why=f"no {PACKAGE}/version.py is in it",
            fix="name the site-packages folder that has it, or a TensorRT-LLM image",
        )
    packages.sort(key=lambda path: (path.parent.name not in ("site-packages", "dist-packages"), str(path)))
    package = packages[0].parent
    return SourceTree(tuple(dict.fromkeys((package, *_script_roots(folder)))))


def _walk(folder: Path) -> Iterator[Path]:
    """Folders below one, nearest first, without links."""
    level = [folder]
    for _ in range(MAX_DEPTH):
        following = []
        for parent in level:
            try:
                entries = sorted(parent.iterdir())
            except OSError:
                continue
            folders = [path for path in entries if path.name not in SKIPPED_FOLDERS and not path.is_symlink()]
            following += [path for path in folders if path.is_dir()]
        yield from following
        level = following


def _script_roots(folder: Path) -> list[Path]:
    """Folders that hold `examples/quantization/quantize.py`, or another example."""
    places = [folder, folder / "app" / PACKAGE]
    found = [place for place in places if (place / "examples").is_dir()]
    if not found and not (folder / PACKAGE).is_dir():
        found = [path.parent for path in _walk(folder) if path.name == "examples" and (path / "quantization").is_dir()]
    return found[:1]


def probe_folder(folder: Path) -> tuple[Surface, tuple[str, ...], tuple[str, ...]]:
    """The surface of the release below a folder, the repository's folders that were read, and what could not be.

    Raises UsageProblem when there is none, or its version cannot be read.
    """
    tree = find_tree(folder)
    covered = (PACKAGE, *(name for name in SCRIPT_FOLDERS if any((root / name).is_dir() for root in tree.roots)))
    surface = Surface(
        version=read_version(tree, folder),
        tools=dict(sorted(read_tools(tree).items())),
        schemas=read_schemas(tree, class_files(tree)),
        engine_architectures=dict.fromkeys(sorted(read_engine_architectures(tree)), "exact"),
        pytorch_architectures=dict.fromkeys(sorted(read_pytorch_architectures(tree)), "exact"),
        quant_algos=dict.fromkeys(read_quant_algos(tree), "exact"),
        kv_algos=dict.fromkeys(read_kv_algos(tree), "exact"),
        env_vars=dict.fromkeys(sorted(read_env_vars(tree)), "exact"),
        triton_models={},
    )
    return surface, covered, tuple(dict.fromkeys(tree.problems))


def read_version(tree: SourceTree, folder: Path) -> str:
    module = tree.module(f"{PACKAGE}/version.py")
    version = read_value(tree, module, module.assigned.get("__version__")) if module else None
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise UsageProblem(
            f"the version of the TensorRT-LLM in {folder} cannot be read",
            why=f"{PACKAGE}/version.py has no __version__ that is one",
            fix="name the folder of a complete installation",
        )
    return version


def read_tools(tree: SourceTree) -> dict[str, Tool]:
    """Every tool of the installation by key."""
    tools: dict[str, Tool] = {}
    for name, target in entry_points(tree).items():
        dotted, _, entry = target.partition(":")
        tools |= read_tool(tree, name, f"{dotted.replace('.', '/')}.py", entry or "main")
    scripts = dict(SCRIPTS)
    scripts |= {f"{Path(path).parent.name}/{CONVERTER}": path for path in tree.files("examples", CONVERTER)}
    for name, path in scripts.items():
        tools |= read_tool(tree, name, path, "cli" if path.startswith("benchmarks/") else "main")
    return tools


def entry_points(tree: SourceTree) -> dict[str, str]:
    """Console commands → what they call, from the distribution's metadata where there is some."""
    for root in tree.roots:
        for path in sorted(root.glob(f"{PACKAGE}-*.dist-info/entry_points.txt")):
            parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
            parser.optionxform = str  # type: ignore[assignment,method-assign]
            try:
                parser.read_string(path.read_text(encoding="utf-8"))
                return dict(parser["console_scripts"])
            except (OSError, ValueError, KeyError, configparser.Error) as error:
                tree.problems.append(f"{path.name}: {error}")
    return {name: target for name, target in ENTRY_POINTS.items() if tree.find(_path_of(target))}


def _path_of(target: str) -> str:
    return target.partition(":")[0].replace(".", "/") + ".py"


def read_tool(tree: SourceTree, name: str, path: str, entry: str) -> dict[str, Tool]:
    """The command lines of one program; none when it is not there or is no program that can be read."""
    module = tree.module(path)
    if module is None:
        return {}
    if "click" in module.imports and (tools := read_click(tree, name, module, entry)):
        return tools
    options = read_argparse(tree, module)
    if not options:
        tree.problems.append(f"{path}: no options were found")
        return {}
    return {name: Tool(name, None, "argparse", options, (path,))}


def class_files(tree: SourceTree) -> tuple[str, ...]:
    folders = [path for folder in CLASS_FOLDERS for path in tree.files(f"{PACKAGE}/{folder}")]
    return (*folders, *(f"{PACKAGE}/{name}" for name in CLASS_FILES))


def read_engine_architectures(tree: SourceTree) -> set[str]:
    """Keys of MODEL_MAP."""
    module = tree.module(f"{PACKAGE}/models/__init__.py")
    node = module.assigned.get("MODEL_MAP") if module else None
    if module is None or not isinstance(node, ast.Dict):
        return set()
    names = {read_value(tree, module, key) for key in node.keys if key is not None}
    return {name for name in names if isinstance(name, str)}


def read_pytorch_architectures(tree: SourceTree) -> set[str]:
    """Names that classes of `_torch/models` are registered by."""
    names: set[str] = set()
    for path in tree.files(f"{PACKAGE}/_torch/models"):
        module = tree.module(path)
        for node in module.classes.values() if module else ():
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and called_name(decorator) == "register_auto_model":
                    value = decorator.args[0] if decorator.args else keyword(decorator, "name")
                    name = read_value(tree, module, value) if module else None
                    if isinstance(name, str):
                        names.add(name)
    return names


def _quantization(tree: SourceTree) -> Module | None:
    return tree.module(f"{PACKAGE}/quantization/mode.py")


def read_quant_algos(tree: SourceTree) -> list[str]:
    """Members of QuantAlgo."""
    module = _quantization(tree)
    node = module.classes.get("QuantAlgo") if module else None
    return [each.name for each in members(tree, module, node)] if module and node and is_enum(node) else []


def read_kv_algos(tree: SourceTree) -> list[str]:
    """Members of QuantAlgo that KV_CACHE_QUANT_ALGO_LIST names."""
    module = _quantization(tree)
    node = module.assigned.get("KV_CACHE_QUANT_ALGO_LIST") if module else None
    items = node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return [item.attr for item in items if isinstance(item, ast.Attribute)]


def read_env_vars(tree: SourceTree) -> set[str]:
    """Environment variables that the package's code reads by name."""
    names: set[str] = set()
    for path in tree.files(PACKAGE):
        file = tree.find(path)
        text = file.read_text(encoding="utf-8", errors="replace") if file else ""
        if "environ" in text or "getenv" in text:
            module = tree.module(path)
            names |= set(_env_names(module.tree)) if module else set()
    return names


def _env_names(root: ast.AST) -> Iterator[str]:
    for node in ast.walk(root):
        match node:
            case ast.Call(func=ast.Attribute(attr="getenv"), args=[ast.Constant(value=str() as name), *_]):
                yield name
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="get" | "pop" | "setdefault"),
                args=[ast.Constant(value=str() as name), *_],
            ):
                yield name
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str() as name)):
                yield name
            case ast.Compare(left=ast.Constant(value=str() as name), comparators=[ast.Attribute(attr="environ")]):
                yield name


def describe_probe(
    surface: Surface, covered: tuple[str, ...], problems: tuple[str, ...], source: str
) -> dict[str, Any]:
    """The document that `trtx probe` writes; `Release.load(version, probed=FILE)` reads it."""
    from trtx.backends.tensorrt_llm.releases import PROBE_SCHEMA
    from trtx.backends.tensorrt_llm.surface import surface_to_json

    return {
        "schema": PROBE_SCHEMA,
        "source": source,
        "covered": list(covered),
        "problems": list(problems),
        "surface": surface_to_json(surface),
    }
