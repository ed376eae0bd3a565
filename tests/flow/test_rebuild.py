"""`trtx verify --rebuild`: engines are built once more, and what came of it is compared with the cache."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.project import Project, make_project
from support.trtllm_flow import make_container_project, write_recipe
from support.trtllm_specs import write_model
from support.trtllm_standins import StandIns, install

from trtx.cache.removal import remove_tree
from trtx.cache.store import Store
from trtx.files import read_json, sha256_file, write_json

RECIPE = {
    "schema": "trtx/v1",
    "name": "tiny",
    "model": {"source": "random://llama-tiny"},
    "quantization": {
        "bf16": {"algorithm": "none", "calibration": {"samples": 8, "heldout": 8, "max_length": 64}},
        "int8": {"algorithm": "int8_wo", "calibration": {"samples": 8, "heldout": 8, "max_length": 64}},
    },
    "engine": {"limits": {"max_batch_size": 4, "max_num_tokens": 128, "max_seq_len": 128}},
    "targets": {"cpu": {"gpu": "cpu"}},
}


def alter_entry(project: Project, step: str, edit: Callable[[Path], None]) -> None:
    """Replace an entry by one that another build of the same key might have left: other files, with right digests."""
    store = Store(Path(project.environ["TRTX_CACHE_DIR"]))
    plan = project.json("plan", "recipe.yaml", "--until", "build")
    key = next(row["key"] for row in plan["status"] if row["step"] == step)
    manifest = store.find(key).manifest
    assert manifest is not None
    with store.stage(key) as folder:
        shutil.copytree(store.output(key), folder / "output", dirs_exist_ok=True)
        for path in (folder / "output").rglob("*"):
            path.chmod(0o755)
        edit(folder / "output")
        remove_tree(store.entry(key))
        store.publish(folder, replace(manifest, files=()))


def snapshot(project: Project) -> dict[str, str]:
    """Every file of the cache's entries with its digest."""
    entries = Path(project.environ["TRTX_CACHE_DIR"]) / "entries"
    return {str(path): sha256_file(path) for path in entries.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose recipe was built for this machine's processor."""
    folder = tmp_path_factory.mktemp("built")
    project = make_project(folder / "project", folder / "cache")
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert project.trtx("apply", "recipe.yaml", "--until", "build").returncode == 0
    return project


def test_engines_for_processors_are_bit_identical_and_what_another_build_chose_is_named(built: Project) -> None:
    def choose_otherwise(engine: Path) -> None:
        choices = read_json(engine / "compile.json")
        choices["programs"]["step"]["kernels"] += 1
        write_json(engine / "compile.json", choices)

    alter_entry(built, "build/cpu/int8", choose_otherwise)
    before = snapshot(built)
    done = built.trtx("verify", "recipe.yaml", "--rebuild", "--keep", "kept", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert snapshot(built) == before
    body = json.loads(done.stdout)
    assert (body["schema"], body["passed"]) == ("trtx.rebuild/v1", True)
    same, other = body["engines"]
    assert (same["step"], same["verdict"]) == ("build/cpu/bf16", "bit-identical")
    assert same["files"] == {"count": 4, "different": []}
    assert same["choices"]["count"] > 10 and same["choices"]["different"] == []
    assert same["records"] == {"count": 0, "different": []}
    assert (same["outputs"]["largest"], same["outputs"]["mismatches"]) == (0.0, 0)
    assert (other["step"], other["verdict"]) == ("build/cpu/int8", "equal within a bound")
    assert other["files"]["different"] == ["compile.json"]
    [choice] = other["choices"]["different"]
    assert choice.startswith("programs.step.kernels: ")
    kept = built.folder / "kept" / "build/cpu/bf16"
    assert (kept / "output/engine.json").is_file()
    assert "compiled step program, kernels" in (kept / "rebuild.log").read_text(), "nothing is taken from a shelf"


def test_a_rebuild_that_is_stopped_leaves_nothing_behind(built: Project, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    argv = built.argv("verify", "recipe.yaml:cpu/bf16", "--rebuild")
    environ = {**built.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(argv, cwd=built.folder, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not any(scratch.glob("trtx-rebuild-*/build/cpu/bf16/work/kernels")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130, said
    assert list(scratch.iterdir()) == []
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(scratch).encode() in read(path)]


def read(path: Path) -> bytes:
    """A file of a process that may be gone."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


@pytest.fixture
def container(tmp_path: Path) -> StandIns:
    return install(tmp_path / "container", "0.16.0")


@pytest.fixture
def inside(tmp_path: Path, container: StandIns) -> Project:
    """A project in a container of stand-ins, whose recipe was built."""
    project = make_container_project(tmp_path, container)
    write_recipe(project, write_model(tmp_path / "model"), "0.16.0", "engine", engine={"converter": "release"})
    assert project.trtx("apply", "recipe.yaml", "--until", "build").returncode == 0
    return project


def verify(project: Project, code: int) -> Any:
    done = project.trtx("verify", "recipe.yaml", "--rebuild", "-o", "json")
    assert done.returncode == code, done.stderr
    [engine] = json.loads(done.stdout)["engines"]
    return engine


def test_engines_of_tensorrt_llm_are_compared_by_their_bytes_and_settings(inside: Project) -> None:
    engine = verify(inside, 0)
    assert engine["verdict"] == "bit-identical"
    assert engine["files"]["count"] > 3 and engine["choices"]["count"] > 20
    assert engine["outputs"] is engine["records"] is None
    alter_entry(inside, "build/h100/bf16", lambda folder: (folder / "rank0.engine").write_text("other tactics"))
    engine = verify(inside, 8)
    assert (engine["verdict"], engine["files"]["different"]) == ("differs", ["rank0.engine"])
    assert engine["choices"]["different"] == []


def test_an_engine_of_tensorrt_llm_is_not_rebuilt_outside_its_container(inside: Project, tmp_path: Path) -> None:
    outside = make_project(inside.folder, tmp_path / "cache")
    engine = verify(outside, 6)
    assert engine["verdict"] is None
    assert engine["error"]["kind"] == "EnvironmentProblem"
    assert "0.16.0" in engine["error"]["what"] + engine["error"]["why"]
