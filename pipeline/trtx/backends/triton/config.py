"""One model of a Triton repository as data, and its config.pbtxt.

Format: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. Every value passes the
`pbtxt` filter, which quotes a string of protobuf's text format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trtx.errors import StepFailed, UsageProblem
from trtx.files import walk_files, write_text
from trtx.render import TEMPLATES, render

CONFIG_NAME = "config.pbtxt"
VERSION_FOLDER = "1"
# A name goes into paths and URLs of the server.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
# What a template of NVIDIA's repositories has where a value belongs; the server fails on one, often in silence.
PLACEHOLDER = re.compile(r"\$\{[^}]*\}")

DataType = Literal[
    "TYPE_BOOL",
    "TYPE_UINT8",
    "TYPE_INT32",
    "TYPE_INT64",
    "TYPE_UINT64",
    "TYPE_FP16",
    "TYPE_BF16",
    "TYPE_FP32",
    "TYPE_STRING",
]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output. `dims` are without the batch dimension, -1 for a variable one.

    `scalar` says that the backend sees [batch] where clients send [batch, 1]; `ragged` that the server may join
    requests whose sizes differ into one batch.
    """

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = False
    scalar: bool = False
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class Batcher:
    """The server's own batcher: how long it waits for more requests, and how many may wait (0: no limit)."""

    max_queue_delay_us: int = 0
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble: names of its tensors → names of the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class TritonModel:
    """One folder of a repository: its configuration, and the files of its only version.

    `backend` is None for an ensemble. `max_batch_size` 0 means that requests have no batch dimension. `decoupled`
    None leaves the transaction policy out. `files` are names in the version's folder → their text.
    """

    name: str
    backend: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0
    decoupled: bool | None = None
    batcher: Batcher | None = None
    instances: int = 1
    kind: Literal["KIND_CPU", "KIND_GPU", "KIND_MODEL"] = "KIND_CPU"
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[EnsembleStep, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def render_config(model: TritonModel) -> str:
    """The text of config.pbtxt. Raises UsageProblem for a name that no folder or URL of the server can have."""
    if not MODEL_NAME.fullmatch(model.name):
        raise UsageProblem(
            f"{model.name!r} cannot be the name of a Triton model",
            why="a name has letters, digits, dots, hyphens and underscores, and starts with a letter or digit",
        )
    return render("triton/config.pbtxt.j2", model=model)


def write_model(repository: Path, model: TritonModel) -> Path:
    """Write the folder of a model into a repository; returns it."""
    folder = repository / model.name
    write_text(folder / CONFIG_NAME, render_config(model))
    # The server asks for the folder of a version even where a version has no file, as in an ensemble.
    (folder / VERSION_FOLDER).mkdir(parents=True, exist_ok=True)
    for name, text in model.files.items():
        write_text(folder / VERSION_FOLDER / name, text)
    return folder


def read_template(name: str) -> str:
    """The text of a file under templates/triton that is copied as it is, such as a model's code."""
    return (TEMPLATES / "triton" / name).read_text(encoding="utf-8")


def check_complete(repository: Path) -> None:
    """Raise StepFailed when a configuration of the repository still has a placeholder where a value belongs."""
    for path in walk_files(repository):
        if path.suffix not in (".pbtxt", ".yaml"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := PLACEHOLDER.search(line):
                raise StepFailed(
                    f"{path.relative_to(repository)}:{number} has no value for {found[0]}",
                    why="Triton takes the placeholder for the value and fails, or ignores the parameter",
                    fix="report it: every value of a repository is set by trtx",
                )


def tensors_from_table(rows: list[Mapping[str, Any]], missing_type: str) -> tuple[Tensor, ...]:
    """Tensors of a release's table. `missing_type` stands where the table has a placeholder for the data type."""
    made: dict[str, Tensor] = {}
    for row in rows:
        dims = tuple(int(word) for word in str(row["dims"]).split(","))
        # A tensor named twice in the release's own file is one tensor.
        made.setdefault(
            row["name"],
            Tensor(row["name"], row["data_type"] or missing_type, dims, optional=bool(row.get("optional"))),
        )
    return tuple(made.values())
