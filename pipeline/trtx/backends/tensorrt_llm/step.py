"""Where a step of this backend reads and writes, and how it tells of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """`inputs` are read-only folders by name, `output` is an empty folder to fill, `work` scratch space.

    `say` writes a line to the step's log, `progress` takes done, total and unit.
    """

    inputs: Mapping[str, Path]
    output: Path
    work: Path
    say: Callable[[str], None]
    progress: Callable[[int, int, str], None]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def scratch(self, name: str) -> Path:
        """A new folder in the scratch space."""
        folder = self.work / name
        folder.mkdir(parents=True)
        return folder
