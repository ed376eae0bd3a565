"""Text that every Python has: the docstrings of its own standard library, read without importing it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.files import write_text
from trtx.models.demo.config import CORPUS_SPLITS

# Not documentation, not part of every installation, or gone in newer versions.
SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib-dynload",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}
MIN_CHARACTERS = 80
HELD_OUT_BYTES = 13  # of 256 values of the first digest byte: 5 % of the documents


def collect_docs(root: Path | None = None) -> dict[str, list[str]]:
    """Docstrings by split, each once, in the order of file names and lines.

    `root` is a folder of Python sources; the running Python's standard library by default.
    A document's own digest decides its split, so that it is the same whatever else is there.

    Raises EnvironmentProblem when the library comes without sources.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    docs: dict[str, list[str]] = {split: [] for split in CORPUS_SPLITS}
    for doc in dict.fromkeys(doc for path in python_files(root) for doc in docstrings(path)):
        held_out = hashlib.sha256(doc.encode()).digest()[0] < HELD_OUT_BYTES
        docs["validation" if held_out else "train"].append(doc)
    if not all(docs.values()):
        raise EnvironmentProblem(
            "this Python's standard library has no readable sources",
            why=f"there are no docstrings below {root}",
            fix="use a Python with its .py files, or a model and data of your own (file:// or hf://)",
        )
    return docs


def python_files(root: Path) -> Iterator[Path]:
    """Source files in a fixed order; skipped folders are not entered."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-"))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of one file worth reading: long enough, and ASCII so that a small vocabulary suffices."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # the library holds a few files that are wrong on purpose
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc and len(doc) > MIN_CHARACTERS and doc.isascii():
                yield doc


def write_corpus(output: Path) -> None:
    """Write train.jsonl and validation.jsonl, rows {"text": …}."""
    for split, docs in collect_docs().items():
        write_text(output / f"{split}.jsonl", "".join(json.dumps({"text": doc}) + "\n" for doc in docs))
