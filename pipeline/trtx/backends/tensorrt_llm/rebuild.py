"""Compares what trtllm-build made, or an options file, with a rebuild of it. Imports no torch.

TensorRT does not tell which kernels it chose, and an engine cannot be asked without its runtime: what is compared is
bytes, and the settings that the engine and its card have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.backends.rebuilt import Comparison, compare_files, compare_values, flatten
from trtx.backends.tensorrt_llm.drift import CONFIG_NAME
from trtx.backends.tensorrt_llm.names import CARD_NAME
from trtx.errors import VerificationFailed
from trtx.files import read_json


def compare(entry: Path, rebuilt: Path) -> Comparison:
    """Compare two folders of a build step. Raises VerificationFailed when one cannot be read."""
    return Comparison(
        files=compare_files(entry, rebuilt), choices=compare_values(_read_settings(entry), _read_settings(rebuilt))
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    """The engine's config.json, where there is an engine, and trtllm.json, flat."""
    found: dict[str, Any] = {}
    for name in (CONFIG_NAME, CARD_NAME):
        if (folder / name).is_file():
            try:
                found |= flatten(read_json(folder / name), name)
            except ValueError as error:
                raise VerificationFailed(f"{folder / name} cannot be read", why=str(error)) from error
    return found
