"""Reads Hugging Face checkpoints tensor by tensor: one model.safetensors, or shards with an index.

Format of the index: https://huggingface.co/docs/safetensors and `model.safetensors.index.json` of
transformers.PreTrainedModel.save_pretrained.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.config import ModelConfig, read_model_config
from trtx.models.json_files import read_entry, read_json_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """An open checkpoint folder; a context manager. Tensors are read from the mapped files when asked for."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`.

        Raises UsageProblem when it has no safetensors weights, VerificationFailed when a file is missing or damaged.
        """
        self.folder = folder
        self._stack = ExitStack()
        # The file that has a tensor, and the tensor's name there.
        self._files: dict[str, tuple[Any, str]] = {}
        self._transposed: frozenset[str] = frozenset()
        try:
            for name in _file_names(folder):
                handle = self._stack.enter_context(self._open(name))
                self._files.update({tensor: (handle, tensor) for tensor in handle.keys()})  # noqa: SIM118
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return sorted(self._files)

    def assume_base(self, base: str) -> None:
        """Let a checkpoint of the model without its head look like one of the whole: `base.` before all names."""
        if not any(name.startswith(f"{base}.") for name in self._files):
            self._files.update({f"{base}.{name}": found for name, found in self._files.items()})

    def transpose(self, names: Iterable[str]) -> None:
        """Show these matrices [K, N] as [N, K]."""
        self._transposed = frozenset(names)

    def dtype(self, name: str) -> str:
        """How a tensor is stored, by its name in the format: `BF16`, `F8_E4M3`, `I8` …"""
        stored: str = self._slice(name).get_dtype()
        return stored

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises VerificationFailed when there is none of that name."""
        shape = tuple(self._slice(name).get_shape())
        return shape[::-1] if name in self._transposed else shape

    def read(self, name: str) -> Tensor:
        """One whole tensor. Raises VerificationFailed when there is none of that name."""
        handle, stored = self._find(name)
        tensor: Tensor = handle.get_tensor(stored)
        return tensor.t() if name in self._transposed else tensor

    def read_part(self, name: str, rows: range, columns: range | None = None) -> Tensor:
        """A contiguous part of a tensor; only that part is read from disk when it is made of whole rows.

        Raises VerificationFailed when the tensor is missing or smaller.
        """
        shape = self.shape(name)
        if rows.stop > shape[0] or (columns is not None and columns.stop > shape[1]):
            raise VerificationFailed(
                f"{name} in {self.folder} has the wrong shape",
                why=f"it is {shape} and config.json asks for {rows.stop}" + (f" × {columns.stop}" if columns else ""),
                fix="fetch or export the checkpoint again",
            )
        part, where = self._slice(name), slice(rows.start, rows.stop)
        there = slice(None) if columns is None else slice(columns.start, columns.stop)
        if name in self._transposed:
            transposed: Tensor = part[there, where]
            return transposed.t()
        tensor: Tensor = part[where] if columns is None else part[where, there]
        return tensor

    def _slice(self, name: str) -> Any:
        handle, stored = self._find(name)
        return handle.get_slice(stored)

    def _find(self, name: str) -> tuple[Any, str]:
        if name not in self._files:
            raise VerificationFailed(
                f"the checkpoint {self.folder} has no tensor {name}",
                why="config.json describes a model that needs it",
                fix="fetch or export the checkpoint again",
            )
        return self._files[name]

    def _open(self, name: str) -> Any:
        path = self.folder / name
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise VerificationFailed(
                f"{path} is not a readable safetensors file",
                why=str(error).splitlines()[0],
                fix="fetch or export the checkpoint again",
            ) from error


def load_model_config(folder: Path) -> ModelConfig:
    """The shape of the model of a Hugging Face folder, from its config.json.

    Raises VerificationFailed when there is none, UsageProblem when the model cannot be compiled.
    """
    return read_model_config(read_json_file(folder / "config.json"))


def _file_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        names = sorted(set(read_entry(folder / INDEX, "weight_map").values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise VerificationFailed(
                f"{folder / INDEX} names files outside its folder", why=outside[0], fix="do not use this checkpoint"
            )
        return names
    if (folder / SINGLE).is_file():
        return [SINGLE]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    raise UsageProblem(
        f"there are no safetensors weights in {folder}",
        why=f"there is only {pickles[0]}, and loading it could run code" if pickles else f"there is no {SINGLE}",
        fix="convert the weights to safetensors, or choose a revision that has them",
    )
