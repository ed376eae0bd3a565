"""Writes safetensors files whose tensors start at multiples of 64 bytes, one tensor at a time.

Format: https://github.com/huggingface/safetensors#format. It allows no holes, so gaps are tensors of their own, named
`__pad.N`; the header is padded with spaces. Compiled kernels read mapped weights with aligned vector loads and
crash on less: mapping keeps the alignment that the file has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trtx.errors import VerificationFailed
from trtx.files import disk_errors
from trtx.models.linear_layout import TensorSpec

ALIGNMENT_BYTES = 64
PAD_PREFIX = "__pad."

# torch name → name and bytes per number in the format.
DTYPES = {
    "float32": ("F32", 4),
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "int32": ("I32", 4),
}


class WeightsWriter:
    """Writes tensors in the order announced; a context manager that deletes the file when it was not completed."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self.path = path
        self._specs = list(specs)
        self._header = make_header(self._specs)
        self._written = 0

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            self._stream = self.path.open("wb")
            self._stream.write(self._header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor. Raises ValueError when it is not the one announced."""
        spec = self._specs[self._written] if self._written < len(self._specs) else None
        found = _describe(name, tensor)
        if found != spec:
            raise ValueError(f"{found} was written where the layout has {spec}")
        with disk_errors(self.path):
            # A view of the tensor's own memory: no copy of it is made.
            self._stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            self._stream.write(b"\0" * _gap(self._stream.tell()))
        self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        complete = self._written == len(self._specs)
        if kind is not None or not complete:
            self.path.unlink(missing_ok=True)
        if kind is None and not complete:
            raise ValueError(f"{self._specs[self._written].name} was announced and not written")


def make_header(specs: Iterable[TensorSpec]) -> bytes:
    """Length and header of a file that holds these tensors in this order, each on its boundary."""
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for spec in specs:
        code, size = DTYPES[spec.dtype]
        start, end = end, end + size * _count(spec.shape)
        entries[spec.name] = {"dtype": code, "shape": list(spec.shape), "data_offsets": [start, end]}
        if gap := _gap(end):
            entries[f"{PAD_PREFIX}{len(entries)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            end += gap
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * _gap(8 + len(text))
    return len(text).to_bytes(8, "little") + text


def map_weights(path: Path, specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    """The tensors of a file, mapped and not read.

    Raises VerificationFailed when they are not exactly those of `specs`, aligned: compiled code trusts both.
    """
    try:
        mapped = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(PAD_PREFIX)}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    expected = {spec.name: spec for spec in specs}
    if odd := sorted(expected.keys() ^ mapped.keys()):
        raise _damaged(path, f"{odd[0]} is {'missing' if odd[0] in expected else 'not known'}")
    for name, tensor in mapped.items():
        if _describe(name, tensor) != expected[name]:
            raise _damaged(path, f"{name} is {list(tensor.shape)} of {tensor.dtype}")
        if tensor.data_ptr() % ALIGNMENT_BYTES:
            raise _damaged(path, f"{name} does not start at a multiple of {ALIGNMENT_BYTES} bytes")
    return mapped


def _damaged(path: Path, why: str) -> VerificationFailed:
    return VerificationFailed(
        f"{path} does not hold the weights that its layout says", why=why, fix="convert the checkpoint again"
    )


def _describe(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _gap(end: int) -> int:
    return -end % ALIGNMENT_BYTES
