"""A real Triton Inference Server on the CPU, on loopback, in folders of its own (nvidia-pytriton carries one)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as grpc
from support.project import ROOT

# Where tests/install puts it: the server's wheel and a numpy of the release that its stub was made for.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
TOOLS = Path(os.environ.get("TRTX_TEST_TOOLS", Path.home() / ".cache" / "trtx-tests"))
INSTALLED = TOOLS / f"triton-0.7.0-python{PYTHON}"
START_S = 60


def missing() -> str | None:
    """Why no server can be started here."""
    if not (INSTALLED / "pytriton").is_dir():
        return "there is no Triton: run tests/install"
    stub = INSTALLED / "pytriton" / "tritonserver" / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file() or b"not found" in subprocess.run(["ldd", stub], capture_output=True, check=False).stdout:
        return f"Triton's stub for Python {PYTHON} cannot run here: run tests/install"
    return None


@dataclass(frozen=True)
class Triton:
    """A server that answers."""

    http: httpx.Client
    client: grpc.InferenceServerClient
    metrics_url: str
    repository: Path
    log: Path
    process: subprocess.Popen[bytes]

    def ask(self, model: str, body: Mapping[str, object]) -> dict[str, Any]:
        """The answer to a request of the generate extension: tensors by name both ways, or `error`."""
        found: dict[str, Any] = self.http.post(f"/v2/models/{model}/generate", json=body).json()
        return found

    def events(self, model: str, body: Mapping[str, object]) -> list[dict[str, Any]]:
        """All answers of a request to the generate_stream extension."""
        with self.http.stream("POST", f"/v2/models/{model}/generate_stream", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric of /metrics whose labels are these, others aside."""
        for line in httpx.get(self.metrics_url, timeout=10).text.splitlines():
            if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"there is no {name} {labels}")

    def load(self, model: str) -> str:
        """Load a model of the repository; what the server says against it, or nothing."""
        response = self.http.post(f"/v2/repository/models/{model}/load")
        return "" if response.status_code == 200 else str(response.json()["error"])

    def is_ready(self, model: str) -> bool:
        return self.http.get(f"/v2/models/{model}/ready").status_code == 200

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the server will do."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within 20 s"
            time.sleep(0.01)


@contextmanager
def running_triton(
    repository: Path,
    folder: Path,
    *,
    load: Sequence[str] = ("*",),
    backends: Mapping[str, Path] | None = None,
    paths: tuple[Path, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Triton]:
    """Serve a repository, with the models in `load` at once.

    `backends` are stand-ins for backends by name, `paths` what its Python finds beside trtx.

    Raises StartFailed with the server's log when it does not get ready.
    """
    package = INSTALLED / "pytriton" / "tritonserver"
    backend_folder = _write_backends(package, folder / "backends", backends or {})
    python = _write_python(folder / "python", paths)
    ports = [_free_port() for _ in range(3)]
    argv = [
        *(str(package / "bin" / "tritonserver"), f"--model-repository={repository}"),
        *(f"--backend-directory={backend_folder}", "--model-control-mode=explicit"),
        *(f"--load-model={name}" for name in load),
        *("--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"),
        *("--metrics-address=127.0.0.1", f"--metrics-port={ports[2]}", "--metrics-interval-ms=100"),
        *("--exit-timeout-secs=10", "--disable-auto-complete-config"),
        *(f"--backend-config=python,shm-region-prefix-name=trtx{ports[0]}_",),
    ]
    environment = {
        **os.environ,
        "PATH": f"{python / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(INSTALLED / "nvidia_pytriton.libs"),
        **(environ or {}),
    }
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=stream, stderr=stream)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60) as http:
            _wait_until_ready(http, process, log)
            client = grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}")
            try:
                yield Triton(http, client, f"http://127.0.0.1:{ports[2]}/metrics", repository, log, process)
            finally:
                client.close()
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class StartFailed(AssertionError):
    """The server ended, or never got ready; the text is its log."""


def _wait_until_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(httpx.TransportError):
            if http.get("/v2/health/ready").status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise StartFailed(log.read_text(errors="replace"))
        time.sleep(0.05)


def _write_backends(package: Path, folder: Path, stand_ins: Mapping[str, Path]) -> Path:
    """The python backend with the stub of this Python, which the server wants as files, not links; and stand-ins."""
    python = folder / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(package / "backends" / "python" / name, python)
    shutil.copy(package / "python_backend_stubs" / PYTHON / "triton_python_backend_stub", python)
    for name, model in stand_ins.items():
        (folder / name).mkdir()
        shutil.copy(model, folder / name / "model.py")
    return folder


def _write_python(folder: Path, paths: tuple[Path, ...]) -> Path:
    """An environment for the stub: its numpy first, then `paths`, then all that this test runs with."""
    venv.EnvBuilder(symlinks=True).create(folder)
    site = folder / "lib" / f"python{PYTHON}" / "site-packages"
    own = Path(httpx.__file__).parents[1]
    lines = [str(INSTALLED), *map(str, paths), f"import site; site.addsitedir({str(own)!r})", str(ROOT / "pipeline")]
    (site / "paths.pth").write_text("".join(f"{line}\n" for line in lines))
    return folder


def rename(model: Path, name: str) -> Path:
    """A copy of a model beside it, under another name."""
    copy = model.with_name(name)
    shutil.copytree(model, copy)
    edit(copy / "config.pbtxt", f'name: "{model.name}"', f'name: "{name}"')
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_input(name: str, values: Any, dtype: Any, datatype: str) -> grpc.InferInput:
    """A tensor of a gRPC request."""
    array = np.array(values, dtype=dtype)
    made = grpc.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made
