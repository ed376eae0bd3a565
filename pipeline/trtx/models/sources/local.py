"""file://: a model or dataset on this machine.

`file:///absolute/path`, `file://~/path`, or `file://relative/path`, which is relative to the working folder of the
command. The path is read as written; percent signs are not decoded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import walk_files
from trtx.models.sources.base import Progress, Request, Resolved
from trtx.models.sources.memo import digest_files
from trtx.models.sources.quantized import read_folder
from trtx.models.sources.select import data_files, model_files
from trtx.models.sources.transfer import check_shards, copy_stream, require_space, tree_digest


def resolve(request: Request) -> Resolved:
    """Pin a folder (or one data file) by the digest of its files' names and contents."""
    path = _path(request)
    root, names = _list(path, request)
    identity = tree_digest(digest_files(root, names, request.environ))
    config = read_config(root / "config.json", str(path)) if request.kind == "model" else {}
    if request.kind == "model":
        check_shards(root, str(path))
    quantized = read_folder(root, config, names, str(path)) if request.kind == "model" else None
    return Resolved(f"file://{path}", identity, config, quantized=quantized)


def is_at_hand(request: Request, identity: str) -> bool:
    """Always: what is gone or changed is found out by resolving."""
    return True


def fetch(request: Request, identity: str, output: Path, progress: Progress) -> None:
    """Copy the files; a link would change with the user's own.

    A dataset is copied whole, so that its digest can be checked, whatever the split.
    """
    path = _path(request)
    root, names = _list(path, request)
    sizes = [(root / name).stat().st_size for name in names]
    require_space(output, sum(sizes))
    done = 0

    def advance(chunk: bytes) -> None:
        nonlocal done
        done += len(chunk)
        progress(done, sum(sizes), "bytes")

    copied = []
    for name in names:
        with (root / name).open("rb") as stream:
            digest = copy_stream(stream, output / name, advance)
        copied.append((name, (output / name).stat().st_size, digest))
    if tree_digest(copied) != identity:
        raise VerificationFailed(
            f"{path} has changed since the plan",
            why="the digest of its files is not the planned one",
            fix="plan again: `trtx apply` does both",
        )


def read_config(path: Path, where: str) -> dict[str, Any]:
    """A config.json as a dictionary.

    Raises UsageProblem when it is not one.
    """
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageProblem(f"config.json of {where} is not JSON", why=str(error)) from error
    if not isinstance(config, dict):
        raise UsageProblem(f"config.json of {where} is not a JSON object")
    return config


def _path(request: Request) -> Path:
    text = request.url.removeprefix("file://")
    if not text:
        raise UsageProblem("file:// names nothing", fix="write file:///absolute/path or file://relative/path")
    path = Path(text).expanduser().absolute()
    if request.revision not in (None, "main"):  # "main" is the recipe's default for every source
        raise UsageProblem(f"{request.url} has no revisions", fix="remove `revision`")
    if not path.exists():
        raise UsageProblem(
            f"{path} does not exist",
            why=f"{request.url} names it" + ("" if text.startswith(("/", "~")) else ", relative to the working folder"),
            fix="check the spelling",
        )
    return path


def _list(path: Path, request: Request) -> tuple[Path, tuple[str, ...]]:
    """The folder, and the relative names of the files that count."""
    try:
        if request.kind == "model":
            if not path.is_dir():
                raise UsageProblem(f"{path} is not a folder", fix="name the folder that holds config.json")
            names = [file.relative_to(path).as_posix() for file in walk_files(path)]
            return path, model_files(names, str(path), allow_pickle=request.allow_pickle)
        if path.is_file():
            return path.parent, data_files([path.name], str(path), None)
        names = [file.relative_to(path).as_posix() for file in walk_files(path)]
        data_files(names, str(path), request.split)  # says so now if there is no such split
        return path, data_files(names, str(path), None)
    except PermissionError as error:
        raise UsageProblem(f"cannot read {path}", why=error.strerror or "") from error
