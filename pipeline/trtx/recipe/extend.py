"""`extends`: the files that a recipe starts from, read and merged into one tree.

Paths are relative to the file that names them. A file is taken as what it is with its own bases merged in; of several
bases the later one wins, and the file itself wins over all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trtx.errors import UsageProblem, did_you_mean, nearest
from trtx.recipe import problems
from trtx.recipe.graft import fork, merge
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.schema import SCHEMA
from trtx.recipe.texts import read_text
from trtx.recipe.tree import DELETE, Tree, Unreadable, read_tree

MAX_LEVELS = 16
MAX_FILES = 100


def extend(tree: Tree, path: Path) -> tuple[Tree, tuple[Path, ...]]:
    """A recipe's tree with its bases merged in, without the key `extends`; and every file read, the recipe first.

    Raises RecipeInvalid with everything that is wrong with `extends` and with files that cannot be read; problems
    that leave the rest readable are in the tree.
    """
    bases = _Bases(path)
    merged = bases.merged(tree, path, (_identity(path),))
    if bases.fatal or bases.is_torn:
        raise RecipeInvalid([*bases.found, *bases.fatal])
    merged.problems = bases.found
    return merged, tuple(bases.files)


class _Bases:
    """Reads each file once.

    `found` are problems of the files read so far, `fatal` those that leave no whole tree; it is torn, too, where the
    name of a base is one of the former.
    """

    def __init__(self, path: Path) -> None:
        self.files = [path]
        self.found: list[Problem] = []
        self.fatal: list[Problem] = []
        self.is_torn = False
        self.known: dict[str, Tree] = {}

    def merged(self, tree: Tree, path: Path, chain: tuple[str, ...]) -> Tree:
        """A file with its bases merged in. `chain` are the files that led here, this one last."""
        self.found += tree.problems
        merged: Tree | None = None
        for place, name in self.names(tree):
            base = self.read(tree, place, path, name, chain)
            if base is not None:
                merged = base if merged is None else merge(merged, base)
        if merged is None:
            merged = fork(tree)
        else:
            merged = merge(merged, tree)
            self.found += merged.problems
        merged.data = {key: value for key, value in merged.data.items() if key != "extends"}
        return merged

    def names(self, tree: Tree) -> Iterator[tuple[problems.Path, str]]:
        """The bases that a file names, and the place of each."""
        given = tree.data.get("extends", ())
        path: problems.Path = ("extends",)
        fix = "write extends: base.yaml, or a list of files"
        if given is DELETE or given == []:
            self.refuse(tree, path, "extends names no file", fix=fix)
        for index, name in enumerate(given if isinstance(given, list | tuple) else [given]):
            inner = (*path, index) if isinstance(given, list) else path
            if isinstance(name, str) and name:
                yield inner, name
            elif tree.is_broken(inner):
                self.is_torn = True
            elif name is not DELETE:
                self.refuse(tree, inner, "extends must be the name of a file, or a list of them", fix=fix)

    def refuse(self, tree: Tree, path: problems.Path, what: str, *, why: str = "", fix: str = "") -> None:
        self.fatal.append(tree.problem_at(path, what, why=why, fix=fix))

    def read(self, tree: Tree, place: problems.Path, path: Path, name: str, chain: tuple[str, ...]) -> Tree | None:
        """One base with its own bases merged in; None when that is impossible, which is then reported."""
        if (form := _wrong_form(name)) is not None:
            self.refuse(tree, place, f"extends cannot be '{name}'", why=form[0], fix=form[1])
            return None
        file = Path(os.path.normpath(path.parent / name))
        identity = _identity(file)
        if identity in chain:
            names = [Path(link).name for link in (*chain[chain.index(identity) :], identity)]
            why = f"it is extended in a circle: {' → '.join(names)}"
            self.refuse(tree, place, f"'{name}' cannot be extended here", why=why, fix="remove one of these extends")
            return None
        if identity in self.known:
            return self.known[identity]
        if len(chain) >= MAX_LEVELS or len(self.files) >= MAX_FILES:
            limit = f"{MAX_LEVELS} levels" if len(chain) >= MAX_LEVELS else f"{MAX_FILES} files"
            self.refuse(tree, place, f"a recipe extends at most {limit}", fix="merge some of these files")
            return None
        base = self.parse(tree, place, file, name)
        if base is None:
            return None
        self.files.append(file)
        self.known[identity] = self.merged(base, file, (*chain, identity))
        return self.known[identity]

    def parse(self, tree: Tree, place: problems.Path, file: Path, name: str) -> Tree | None:
        if not file.exists():
            self.refuse(tree, place, f"there is no file {file}", **_missing(file, name))
            return None
        try:
            base = read_tree(str(file), read_text(file))
        except UsageProblem as error:
            if isinstance(error, RecipeInvalid):
                self.fatal += error.problems
            else:
                self.refuse(tree, place, f"'{name}' cannot be extended: {error.what}", why=error.why, fix=error.fix)
            return None
        except Unreadable as error:
            self.fatal.append(error.problem)
            return None
        if base.data.get("schema", SCHEMA) != SCHEMA and not base.is_broken(("schema",)):
            what = f"a file of schema '{base.data['schema']}' cannot be extended"
            fix = f"`trtx migrate {file}` brings an older file up to date"
            self.refuse(base, ("schema",), what, why=f"a recipe and all its bases are {SCHEMA}", fix=fix)
            return None
        return base


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _wrong_form(name: str) -> tuple[str, str] | None:
    """Why a text is no path of a base, and what to write; None when it is one."""
    relative = "write a path relative to this file, such as ../base.yaml"
    if "${" in name:
        return "files are read before variables are", "name the file itself"
    if "://" in name:
        return "bases are files, so that a recipe is whole where its folder is", relative
    if name.startswith("~"):
        return "home folders differ between machines", relative
    if Path(name).is_absolute():
        return "absolute paths differ between machines", relative
    return None


def _missing(file: Path, name: str) -> dict[str, str]:
    folder = file.parent
    if not folder.is_dir():
        return {
            "why": f"there is no folder {folder}",
            "fix": "paths in extends are relative to the file that says them",
        }
    names = sorted(item.name for item in folder.glob("*.y*ml"))
    match = nearest(file.name, names)
    if match:
        return {"fix": f"did you mean '{Path(name).with_name(match)}'?"}
    return {"fix": did_you_mean(file.name, names) if names else f"{folder} holds no YAML files"}
