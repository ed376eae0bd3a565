"""Writes one rank file, tensor by tensor in any order; it appears under its name when it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.header import make_header
from trtx.files import disk_errors
from trtx.models.linear_layout import TensorSpec


class RankFile:
    """A context manager that renames the file into place at the end, and removes it after an error."""

    def __init__(self, path: Path, specs: Iterable[TensorSpec]) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._header, self._places = make_header(specs)
        self._missing = set(self._places)

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            _write_at(self._descriptor, memoryview(self._header), 0)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor. Raises ValueError when it is not as announced, or was written already."""
        found = TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        place = self._places.get(name)
        if place is None or place.spec != found or name not in self._missing:
            raise ValueError(f"{found} was written where the layout has {place and place.spec}")
        with disk_errors(self.path):
            # A view of the tensor's own memory: no copy of it is made.
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            _write_at(self._descriptor, data, place.start)
        self._missing.remove(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._missing:
                raise ValueError(f"{min(self._missing)} was announced and not written")
            if kind is None:
                with disk_errors(self.path):
                    os.fsync(self._descriptor)
                    self._temporary.replace(self.path)
        finally:
            os.close(self._descriptor)
            self._temporary.unlink(missing_ok=True)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """pwrite(2), which may write less than it was given, and never more than 2 GiB."""
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
