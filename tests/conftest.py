"""What all tests share: one cache, one project folder with the quickstart applied once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import hypothesis
import pytest
from support import slurm_table, triton_table, trtllm_table
from support.project import ROOT, Project, make_project

# Read when torch starts its threads: those that spin while they wait starve what else runs here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples in every run, so that CI says the same twice; TRTX_FUZZ looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("default" if "TRTX_FUZZ" in os.environ else "fixed")
# Whatever this machine's configuration names: tests take nothing from a fleet's cache and put nothing there.
os.environ["TRTX_CACHE_REMOTES"] = ""


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that the costly tests share; TRTX_TEST_CACHE keeps it between sessions while developing."""
    kept = os.environ.get("TRTX_TEST_CACHE")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def quickstart(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which `trtx apply recipes/quickstart.yaml` has ended well: trained, quantized, built, packaged."""
    project = make_project(tmp_path_factory.mktemp("project"), shared_cache)
    # A copy: a lock is written beside the recipe.
    shutil.copytree(ROOT / "recipes", project.folder / "recipes", ignore=shutil.ignore_patterns("*.lock.yaml"))
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    slurm_table.print_table(terminalreporter)
    trtllm_table.print_table(terminalreporter)
    triton_table.print_triton_table(terminalreporter)
