"""What all tests share: one cache, one project folder with the quickstart applied once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

# Read when torch starts its threads: tests share the machine's cores, and threads that spin while they wait starve others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that the costly tests share; TRTX_TEST_CACHE keeps it between sessions while developing."""
    kept = os.environ.get("TRTX_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def quickstart(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which `trtx apply recipes/quickstart.yaml` has ended well: trained, quantized, built, packaged."""
    project = make_project(tmp_path_factory.mktemp("project"), shared_cache)
    (project.folder / "recipes").symlink_to(ROOT / "recipes")
    done = project.trtx("apply", "recipes/quickstart.yaml")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project with an empty cache."""
    return make_project(tmp_path / "project", tmp_path / "cache")


@pytest.fixture
def project_on_shared_cache(quickstart: Project, shared_cache: Path, tmp_path: Path) -> Project:
    """An empty project whose cache holds the quickstart."""
    return make_project(tmp_path / "project", shared_cache)
