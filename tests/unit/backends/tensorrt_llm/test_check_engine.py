"""The script that refuses an engine in a container that does not fit it: its rule, and as it is run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.triton_specs import write_distribution, write_engine_folder

from trtx.backends.tensorrt_llm.check_script import CHECK_SCRIPT, read_check_script
from trtx.render import TEMPLATES

SCRIPT = TEMPLATES / "tensorrt_llm" / CHECK_SCRIPT
CONFIG = {"version": "1.2.1", "build_config": {}, "pretrained_config": {"mapping": {"world_size": 1}}}
RECORD = {"tensorrt": "10.14.1.48", "compute_capability": "9.0", "gpu": "NVIDIA H100 80GB HBM3"}
HERE = {
    "tensorrt_llm": "1.2.1",
    "tensorrt": "10.14.1.48.post1",
    "compute_capabilities": ["9.0"],
    "gpus": ["NVIDIA H100 80GB HBM3"],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_engine", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_engine_fits_the_container_that_built_it_and_one_with_less_to_say(script: ModuleType) -> None:
    script.check(CONFIG, RECORD, HERE)
    script.check(CONFIG, RECORD, HERE, strict=True)
    # Without a record the release decides alone; what a container cannot tell is not held against it.
    script.check(CONFIG, {}, HERE)
    script.check(CONFIG, RECORD, {**HERE, "tensorrt": None, "compute_capabilities": None, "gpus": None})


@pytest.mark.parametrize(
    ("change", "strict", "says"),
    [
        ({"tensorrt_llm": "1.1.0"}, False, "was built by TensorRT-LLM 1.2.1 and this container has 1.1.0"),
        ({"tensorrt_llm": None}, False, "this container has no TensorRT-LLM"),
        ({"tensorrt": "10.13.3.9"}, False, "was built with TensorRT 10.14.1.48 and this container has 10.13.3.9"),
        ({"compute_capabilities": ["8.0"]}, False, "compute capability 9.0 and this container's GPU has 8.0"),
        ({"compute_capabilities": ["8.0", "8.9"]}, False, "compute capability 9.0 and this container's GPU has 8.0"),
        ({"compute_capabilities": []}, False, "and this container sees no GPU"),
        ({"gpus": ["NVIDIA H200"]}, True, "was tuned on NVIDIA H100 80GB HBM3 and this container has NVIDIA H200"),
    ],
)
def test_a_mismatch_is_one_sentence(script: ModuleType, change: dict[str, Any], strict: bool, says: str) -> None:
    with pytest.raises(script.Mismatch) as caught:
        script.check(CONFIG, RECORD, {**HERE, **change}, strict)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_gpus_beside_a_fitting_one_do_no_harm(script: ModuleType) -> None:
    script.check(CONFIG, RECORD, {**HERE, "compute_capabilities": ["8.9", "9.0"]})


def test_another_gpu_of_the_same_capability_is_refused_only_when_asked(script: ModuleType) -> None:
    script.check(CONFIG, RECORD, {**HERE, "gpus": ["NVIDIA H200"]}, strict=False)


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """The environment of a container with TensorRT-LLM 1.2.1 and one H100, as far as the script looks."""
    write_distribution(tmp_path / "site", "tensorrt_llm", "1.2.1")
    write_distribution(tmp_path / "site", "tensorrt", "10.14.1.48")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '9.0, NVIDIA H100 80GB HBM3'\n")
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path / "site")}


def run(environ: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    # Isolated from this environment's packages, as it has nothing but the standard library to rely on.
    command = [sys.executable, "-S", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


def test_what_built_an_engine_is_recorded_and_checked(tmp_path: Path, container: dict[str, str]) -> None:
    engine = write_engine_folder(tmp_path / "engine", "1.2.1")
    assert run(container, "record", engine).returncode == 0
    assert json.loads((engine / "trtllm.json").read_text()) == {
        "tensorrt_llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "compute_capability": "9.0",
        "gpu": "NVIDIA H100 80GB HBM3",
    }
    done = run(container, "check", engine)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho '8.9, NVIDIA L40S'\n")
    done = run(container, "check", engine)
    assert done.returncode == 6
    assert done.stderr == ("error: the engine was built for compute capability 9.0 and this container's GPU has 8.9\n")


def test_a_folder_without_an_engine_is_refused(tmp_path: Path, container: dict[str, str]) -> None:
    done = run(container, "check", tmp_path)
    assert done.returncode == 6
    assert "is not an engine of TensorRT-LLM" in done.stderr
    engine = write_engine_folder(tmp_path / "engine", "1.2.1", ranks=2)
    (engine / "rank1.engine").unlink()
    assert "has no rank1.engine" in run(container, "check", engine).stderr


def test_wrong_words_are_a_matter_of_usage(container: dict[str, str]) -> None:
    done = run(container, "verify")
    assert (done.returncode, done.stderr) == (2, "usage: check_engine.py check|record ENGINE\n")


def test_the_script_is_read_from_the_templates() -> None:
    assert read_check_script() == SCRIPT.read_text()
