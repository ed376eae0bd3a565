"""A cluster for whole runs, and projects on it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import make_llama
from support.engines import raw_tokenizer
from support.light_worker import LightSteps
from support.project import Project, make_project
from support.slurm import FAKETIME, Cluster, missing_programs
from support.slurm_site import Ground, Site, write_recipe


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    if reason := missing_programs():
        pytest.skip(reason)
    # A short path: sockets have at most 108 characters.
    made = Cluster(Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp")))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model and some texts."""
    folder = tmp_path_factory.mktemp("fetched")
    tokenizer = raw_tokenizer()
    make_llama(folder / "model", vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "model/tokenizer.json"))
    (folder / "model/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "texts.txt").write_text("\n\n".join(f"text number {number}" for number in range(64)))
    return folder


@pytest.fixture
def site(shared_cluster: Cluster, fetched: Path, tmp_path: Path) -> Iterator[Site]:
    project = make_project(tmp_path / "project", tmp_path / "cache")
    project = Project(project.folder, {**project.environ, **shared_cluster.environ, "HF_TOKEN": "hf_secret"})
    steps = LightSteps(tmp_path / "light")
    write_recipe(project, fetched, steps)
    yield Site(project, shared_cluster, steps)
    steps.release()
    shared_cluster.clear()


@pytest.fixture(scope="session")
def ground(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    if reason := missing_programs():
        pytest.skip(reason)
    if not FAKETIME.exists():
        pytest.skip("libfaketime is missing: run tests/install")
    with contextlib.ExitStack() as clusters:
        yield Ground(tmp_path_factory.mktemp("ground"), fetched, clusters)
