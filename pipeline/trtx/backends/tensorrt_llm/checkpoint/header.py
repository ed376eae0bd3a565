"""Headers of safetensors files, written and read without torch.

Format: https://github.com/huggingface/safetensors#format: the header's length as eight bytes, the header as JSON, the
tensors without holes. Unlike models/weights_file.py no gap is filled by a tensor: TensorRT-LLM warns of unknown names.
Wider numbers stand first, so that each tensor starts at a multiple of its own width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trtx.errors import VerificationFailed
from trtx.models.linear_layout import TensorSpec

# Name in the format → torch's name, bytes per number.
DTYPES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
CODES = {name: (code, size) for code, (name, size) in DTYPES.items()}
# The reference implementation refuses larger headers, too.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Place:
    """A tensor in a file: its first byte from the start of the file, and how many there are."""

    spec: TensorSpec
    start: int
    num_bytes: int


def num_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * CODES[spec.dtype][1]


def make_header(specs: Iterable[TensorSpec]) -> tuple[bytes, dict[str, Place]]:
    """The first bytes of a file with these tensors, and where in it each one stands."""
    ordered = sorted(specs, key=lambda spec: (-CODES[spec.dtype][1], spec.name))
    entries: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    ends, end = [], 0
    for spec in ordered:
        start, end = end, end + num_bytes(spec)
        ends.append((spec, start, end))
        entries[spec.name] = {"dtype": CODES[spec.dtype][0], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    places = {spec.name: Place(spec, first + start, end - start) for spec, start, end in ends}
    return len(text).to_bytes(8, "little") + text, places


def read_header(path: Path) -> dict[str, TensorSpec]:
    """The tensors of a file by name. Raises VerificationFailed for a file that is none, or is cut off."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            entries = json.loads(stream.read(length))
            size = path.stat().st_size - 8 - length
        found = {name: _read_entry(name, entry) for name, entry in entries.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
        if end != size:
            raise ValueError(f"it has {size} bytes of numbers, and its header says {end}")
    except FileNotFoundError as error:
        raise VerificationFailed(f"{path} is missing", fix="convert the checkpoint again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise VerificationFailed(
            f"{path} is no whole safetensors file", why=str(error).splitlines()[0], fix="convert the checkpoint again"
        ) from error
    return found


def _read_entry(name: str, entry: dict[str, object]) -> TensorSpec:
    shape, code = entry["shape"], entry["dtype"]
    if not isinstance(shape, list) or not isinstance(code, str):
        raise ValueError(f"{name} has no shape")
    spec = TensorSpec(name, tuple(map(int, shape)), DTYPES[code][0])
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or offsets[1] - offsets[0] != num_bytes(spec):
        raise ValueError(f"{name} has bytes {offsets} for {list(spec.shape)} {code}")
    return spec
