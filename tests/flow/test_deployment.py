"""The deployment folder of a real engine: made again byte for byte, checked, started, asked."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trtx.cache.store import Store
from trtx.stages.base import StepContext, load_stage
from trtx.stages.params import PackageParams

CELL = "cpu/int4"
START_S = 120


@pytest.fixture
def package(quickstart: Any, tmp_path: Path) -> Path:
    """A copy of a deployment folder, as another machine gets it, that serves on a free port."""
    target = tmp_path / "package"
    shutil.copytree(quickstart.folder / "out" / "quickstart" / CELL, target)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    body = json.loads((target / "deployment.json").read_bytes())
    body["serve"] = [f"--port={port}" if word.startswith("--port=") else word for word in body["serve"]]
    (target / "deployment.json").unlink()
    (target / "deployment.json").write_text(json.dumps(body | {"port": port}))
    return target


def run(package: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(package / script)], capture_output=True, text=True, check=False, timeout=START_S
    )


def sums(package: Path) -> list[str]:
    """Digests of all files but the evidence: taken anew, its last digits depend on the number of threads."""
    lines = (package / "SHA256SUMS").read_text().splitlines()
    return [line for line in lines if not line.endswith("  engine/check.json")]


@contextmanager
def started(package: Path) -> Iterator[str]:
    """The entrypoint as a process, from the moment its health check passes; yields its address."""
    port = json.loads((package / "deployment.json").read_bytes())["port"]
    with (package.parent / "server.log").open("w+") as log:
        command = [sys.executable, str(package / "entrypoint.py")]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=package.parent)
        try:
            deadline = time.monotonic() + START_S
            while run(package, "healthcheck.py").returncode != 0:
                assert process.poll() is None, (package.parent / "server.log").read_text()
                assert time.monotonic() < deadline, f"not healthy after {START_S} s"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_the_same_inputs_give_the_same_package_again(quickstart: Any, shared_cache: Path, tmp_path: Path) -> None:
    plan = quickstart.json("plan", "recipes/quickstart.yaml")
    (step,) = [step for step in plan["steps"] if step["id"] == f"package/{CELL}"]
    store = Store(shared_cache)
    keys = {name: entry["key"] for name, entry in step["inputs"].items()}
    (tmp_path / "output").mkdir()
    context = StepContext({name: store.output(key) for name, key in keys.items()}, tmp_path / "output", tmp_path, keys)
    load_stage("package").run(PackageParams.model_validate(step["params"]), context)
    assert sums(tmp_path / "output") == sums(store.output(step["key"]))


def test_the_delivered_folder_passes_its_own_checksums(quickstart: Any) -> None:
    folder = quickstart.folder / "out" / "quickstart" / CELL
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_copied_package_starts_and_answers_under_the_recipe_s_name(package: Path) -> None:
    with started(package) as url:
        body = {"model": "quickstart", "prompt": "Return the", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(  # noqa: S310
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            completion = json.loads(answer.read())
    assert completion["model"] == "quickstart"
    assert completion["choices"][0]["text"]


def test_a_flipped_byte_in_a_compiled_program_is_never_loaded(package: Path) -> None:
    program = package / "engine" / "programs" / "step.pt2"
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    program.unlink()
    program.write_bytes(content)
    answer = run(package, "entrypoint.py")
    assert answer.returncode == 8
    assert answer.stderr.splitlines() == [
        "error: engine/programs/step.pt2 is not the file that was packaged; copy the folder again"
    ]
