"""What kernels are made of, for the key of a build. Imports no torch, as the control plane asks too."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from trtx.files import read_file, sha256_bytes

FOLDER = Path(__file__).parent
SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")


@cache
def sources_digest(folder: str = str(FOLDER)) -> str:
    """SHA-256 over the names and contents of the kernels' own files, the Python that builds and calls them included."""
    paths = sorted(f"{here}/{name}" for here, _, names in os.walk(folder) for name in names if name.endswith(SUFFIXES))
    lines = [f"{sha256_bytes(read_file(path))}  {path[len(folder) + 1 :]}" for path in paths]
    return sha256_bytes("\n".join(lines).encode())
