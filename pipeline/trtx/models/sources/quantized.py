"""What a plan must know of a model that is quantized already: its description, and which tensors it has.

Only headers are read: the first bytes of each safetensors file (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.errors import VerificationFailed
from trtx.models.sources.select import QUANT_FORMAT_FILE

# Of config.json.
CONFIG_ENTRY = "quantization_config"
# Length of a header as the format's own readers bound it.
MAX_HEADER_BYTES = 100_000_000

# (file, first byte, byte after the last, None for the end) → those bytes, or fewer where the file ends before.
ReadRange = Callable[[str, int, int | None], bytes]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class QuantizedFiles:
    """`described` is the content of hf_quant_config.json, None where there is none; `shapes` has all tensors."""

    described: Mapping[str, Any] | None
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def names(self) -> list[str]:
        return sorted(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises VerificationFailed when there is no tensor of that name."""
        if name not in self.shapes:
            raise VerificationFailed(
                f"the checkpoint has no tensor {name}",
                why="the tensor that it belongs to is there",
                fix="fetch or export the checkpoint again",
            )
        return self.shapes[name]

    def to_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"described": self.described, "shapes": {name: list(shape) for name, shape in self.shapes.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> QuantizedFiles:
        """Raises KeyError, TypeError or AttributeError for what `to_data` did not make."""
        return cls(data["described"], {name: tuple(shape) for name, shape in data["shapes"].items()})


def read_quantized(
    config: Mapping[str, Any], names: Iterable[str], where: str, read: ReadRange
) -> QuantizedFiles | None:
    """What the files `names` of a model say; None, and nothing is read, where nothing hints at quantization.

    Raises VerificationFailed for a file that is damaged.
    """
    present = set(names)
    if not config.get(CONFIG_ENTRY) and QUANT_FORMAT_FILE not in present:
        return None
    described = None
    if QUANT_FORMAT_FILE in present:
        described = parse_object(read(QUANT_FORMAT_FILE, 0, None), QUANT_FORMAT_FILE, where)
    shapes: Shapes = {}
    for name in sorted(name for name in present if name.endswith(".safetensors")):
        shapes |= read_shapes(name, where, read)
    return QuantizedFiles(described, shapes)


def read_shapes(name: str, where: str, read: ReadRange) -> Shapes:
    """Shapes by tensor, from the header of a safetensors file: its length, 8 bytes little-endian, and JSON."""
    start = read(name, 0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
    if length > MAX_HEADER_BYTES:
        raise _damaged(name, where, "its header has no sensible length")
    header = parse_object(read(name, 8, 8 + length), name, where)
    try:
        return {
            tensor: tuple(int(size) for size in facts["shape"])
            for tensor, facts in header.items()
            if tensor != "__metadata__"
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(name, where, "its header does not describe tensors") from error


def parse_object(data: bytes, name: str, where: str) -> dict[str, Any]:
    """Raises VerificationFailed for what is no JSON object."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise _damaged(name, where, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(name, where, "it does not hold a JSON object")
    return found


def read_folder(folder: Path, config: Mapping[str, Any], names: Iterable[str], where: str) -> QuantizedFiles | None:
    """The same of a folder on this machine."""

    def read(name: str, start: int, stop: int | None) -> bytes:
        with (folder / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(-1 if stop is None else stop - start)

    return read_quantized(config, names, where, read)


def _damaged(name: str, where: str, why: str) -> VerificationFailed:
    return VerificationFailed(f"{name} of {where} cannot be read", why=why, fix="save or upload the model again")
