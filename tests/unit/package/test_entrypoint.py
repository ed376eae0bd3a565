"""The entrypoint as it is really run: a process in the deployment folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import pytest

from trtx.files import sha256_bytes


class Deploy(Protocol):
    def __call__(self, folder: str = ..., benchmark: Path | None = ..., **changes: Any) -> Path: ...


# Loaded by Python at its start: shows the command that would replace the process.
SHOW_EXEC = """
import json, os
def execv(path, argv):
    print(json.dumps(argv), flush=True)
    os._exit(0)
os.execv = execv
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHOW_EXEC)
    return tmp_path / "site"


def enter(
    package: Path, site: Path, *arguments: str, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)} | variables
    command = [python, str(package / "entrypoint.py"), *arguments]
    # Started from elsewhere: the folder must find itself.
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False, timeout=60)


def replace(package: Path, name: str, content: bytes) -> None:
    """New content without touching the file that the old one may be a hard link to."""
    (package / name).unlink()
    (package / name).write_bytes(content)


def change_card(package: Path, **compiled_for: object) -> None:
    """Edit the engine card and its checksum, so that only the card's meaning is wrong."""
    name = "engine/engine.json"
    body = json.loads((package / name).read_bytes())
    body["compiled_for"] |= compiled_for
    content = json.dumps(body).encode()
    replace(package, name, content)
    sums = (package / "SHA256SUMS").read_text().splitlines()
    lines = [f"{sha256_bytes(content)}  {name}" if line.endswith(f"  {name}") else line for line in sums]
    (package / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def test_an_intact_folder_on_a_fitting_machine_becomes_the_server(package: Path, site: Path) -> None:
    answer = enter(package, site, "--host", "0.0.0.0")  # noqa: S104
    assert answer.returncode == 0, answer.stderr
    command = json.loads(answer.stdout)
    assert command[0] == sys.executable
    assert command[3:5] == ["serve", str(package / "engine")]
    assert command[5:7] == ["--port=8000", "--model-name=llama"]
    assert command[-2:] == ["--host", "0.0.0.0"]  # noqa: S104


@pytest.mark.parametrize("name", ["engine/weights/rank0.safetensors", "engine/programs/step.pt2", "engine/engine.json"])
def test_a_changed_byte_stops_the_start_and_names_the_file(package: Path, site: Path, name: str) -> None:
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    replace(package, name, bytes(content))
    answer = enter(package, site)
    assert answer.returncode == 8
    assert answer.stderr.splitlines() == [f"error: {name} is not the file that was packaged; copy the folder again"]
    assert answer.stdout == ""


def test_a_missing_file_stops_the_start_and_is_named(package: Path, site: Path) -> None:
    (package / "engine/tokenizer/tokenizer.json").unlink()
    answer = enter(package, site)
    assert answer.returncode == 8
    assert "cannot read engine/tokenizer/tokenizer.json: No such file" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_processor_without_a_needed_feature_is_refused_in_one_sentence(package: Path, site: Path) -> None:
    change_card(package, cpu_flags=["no_such_flag"])
    answer = enter(package, site)
    assert answer.returncode == 6
    assert "this processor has no no_such_flag" in answer.stderr.splitlines()[0]
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


def test_another_device_is_refused(package: Path, site: Path) -> None:
    change_card(package, device="cuda", arch="sm_90")
    answer = enter(package, site)
    assert answer.returncode == 6
    assert "compiled for sm_90 GPUs and this machine has none" in answer.stderr


def test_a_card_of_another_version_is_refused(package: Path, site: Path) -> None:
    change_card(package, color="green")
    answer = enter(package, site)
    assert answer.returncode == 8
    assert "is not an engine card of this version" in answer.stderr


def test_leaving_the_weights_out_still_checks_the_code(package: Path, site: Path) -> None:
    replace(package, "engine/weights/rank0.safetensors", b"changed")
    assert enter(package, site, TRTX_VERIFY="code").returncode == 0
    replace(package, "engine/programs/step.pt2", b"changed")
    assert enter(package, site, TRTX_VERIFY="code").returncode == 8


def test_a_mistyped_scope_is_a_usage_error_and_not_less_checking(package: Path, site: Path) -> None:
    answer = enter(package, site, TRTX_VERIFY="none")
    assert answer.returncode == 2
    assert "it must be one of all, code" in answer.stderr


def test_triton_is_started_on_the_same_conditions(deploy: Deploy, site: Path, tmp_path: Path) -> None:
    package = deploy(emit=("triton",), triton_base="nvcr.io/nvidia/tritonserver:25.08-py3")
    server = tmp_path / "bin" / "tritonserver"
    server.parent.mkdir()
    server.touch(mode=0o755)
    triton = {"TRTX_SERVER": "triton", "PATH": f"{server.parent}:{os.environ['PATH']}"}
    answer = enter(package, site, "--http-port=9000", **triton)
    assert json.loads(answer.stdout) == [
        str(server),
        f"--model-repository={package / 'triton-server' / 'models'}",
        "--disable-auto-complete-config",
        "--http-port=9000",
    ]
    change_card(package, cpu_flags=["no_such_flag"])
    assert enter(package, site, **triton).returncode == 6


def test_a_server_that_is_not_there_is_a_usage_error(package: Path, site: Path) -> None:
    answer = enter(package, site, TRTX_SERVER="triton")
    assert answer.returncode == 2
    assert "add triton to package.emit" in answer.stderr
    answer = enter(package, site, TRTX_SERVER="vllm")
    assert answer.returncode == 2
    assert "it must be one of trtx, triton" in answer.stderr


def test_a_python_without_trtx_is_told_what_to_install(package: Path, site: Path, tmp_path: Path) -> None:
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    answer = enter(package, site, python=python)
    assert answer.returncode == 6
    assert "pip install --no-deps -r requirements.txt wheels/*.whl" in answer.stderr


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_server_and_no_proxy(package: Path, status: int, exit_code: int) -> None:
    handler = type("Handler", (Answer,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.handle_request, daemon=True).start()
        body = json.loads((package / "deployment.json").read_bytes()) | {"port": server.server_address[1]}
        replace(package, "deployment.json", json.dumps(body).encode())
        environment = {"http_proxy": "http://127.0.0.1:9", "PATH": os.environ["PATH"]}
        command = [sys.executable, str(package / "healthcheck.py")]
        assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == exit_code


def test_the_health_check_fails_quietly_when_nobody_listens(package: Path) -> None:
    body = json.loads((package / "deployment.json").read_bytes()) | {"port": 9}
    replace(package, "deployment.json", json.dumps(body).encode())
    answer = subprocess.run(
        [sys.executable, str(package / "healthcheck.py")], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
