"""A folder to run `trtx` in, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The project's own recipes; a lock beside one is left by whoever applied it.
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if not path.name.endswith(".lock.yaml"))


@dataclass(frozen=True)
class Project:
    """A folder to run `trtx` in, as a user would, with a cache of its own or a shared one."""

    folder: Path
    environ: Mapping[str, str]

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "trtx.cli", *map(str, arguments)]

    def trtx(self, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run trtx to its end; never raises, look at `returncode`."""
        return subprocess.run(
            self.argv(*arguments),
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    def json(self, *arguments: object, **environ: str) -> Any:
        """Run trtx with -o json and return what it printed; a failure shows its messages."""
        done = self.trtx(*arguments, "-o", "json", **environ)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def make_project(folder: Path, cache: Path) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "TRTX_CACHE_DIR": str(cache), "NO_COLOR": "1", "COLUMNS": "200"}
    return Project(folder, environ)
