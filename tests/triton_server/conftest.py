from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engines import write_tokenizer_folder
from support.project import Project, make_project
from support.triton import Triton, edit, missing, rename, running_triton
from support.triton_specs import make_spec, write_distribution, write_engine_folder

from trtx.backends.tensorrt_llm.triton import TritonServing, write_repository

RELEASE = "0.20.0"
STAND_IN = Path(__file__).parents[1] / "support" / "tensorrtllm_stand_in.py"
CELL = "cpu/int8"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (reason := missing()) is not None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def package(quickstart: Project, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment folder with a repository for Triton, around an engine of the quickstart."""
    project = make_project(tmp_path_factory.mktemp("triton-package"), shared_cache)
    recipe = quickstart.folder / "recipes" / "quickstart.yaml"
    shutil.copy(recipe, project.folder)
    done = project.trtx("apply", f"quickstart.yaml:{CELL}", "--set", "package.emit=[compose, triton]")
    assert done.returncode == 0, done.stderr
    return project.folder / "out" / "quickstart" / CELL


@pytest.fixture(scope="session")
def embedded(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Triton with the package's model, and another of the same engine that answers at once; others stand ready."""
    copy = tmp_path_factory.mktemp("embedded") / "package"
    shutil.copytree(package, copy)
    models = copy / "triton-server" / "models"
    whole = rename(models / "quickstart", "whole")
    edit(whole / "config.pbtxt", "decoupled: true", "decoupled: false")
    with running_triton(models, copy.parent, load=("quickstart", "whole")) as server:
        yield server


@pytest.fixture(scope="session")
def engine_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Triton, Path]]:
    """Triton with the repository of RELEASE before a stand-in for the closed backend; and where it notes its inputs."""
    folder = tmp_path_factory.mktemp("engine-flow")
    write_tokenizer_folder(folder / "tokenizer")
    engine = write_engine_folder(folder / "engine", RELEASE)
    (engine / "trtllm.json").write_text(json.dumps({"tensorrt": "10.10.0.31"}))
    write_distribution(folder / "site", "tensorrt_llm", RELEASE)
    write_distribution(folder / "site", "tensorrt", "10.10.0")
    serving = TritonServing(engine_dir=str(engine), tokenizer_dir=str(folder / "tokenizer"))
    names = write_repository(make_spec(RELEASE), folder / "models", engine=engine, serving=serving)
    # With `streaming` off the front and the backend behind it answer at once: a second pair beside the first.
    at_once = serving.model_copy(update={"streaming": False})
    write_repository(make_spec(RELEASE), folder / "at-once", engine=engine, serving=at_once)
    for name in ("tensorrt_llm", "tensorrt_llm_bls"):
        shutil.move(rename(folder / "at-once" / name, f"{name}_at_once"), folder / "models")
    front = folder / "models" / "tensorrt_llm_bls_at_once" / "config.pbtxt"
    edit(front, 'string_value: "tensorrt_llm"', 'string_value: "tensorrt_llm_at_once"')
    seen = folder / "seen.jsonl"
    with running_triton(
        folder / "models",
        folder,
        load=(*names, "tensorrt_llm_at_once", "tensorrt_llm_bls_at_once"),
        backends={"tensorrtllm": STAND_IN},
        paths=(folder / "site",),
        environ={"TRTX_STAND_IN_LOG": str(seen)},
    ) as server:
        yield server, seen
