"""Programs and daemons are asked for their versions, and an answer that does not come is no failure."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trtx.hardware.software import (
    check_version,
    package_problem,
    read_compiler,
    read_docker,
    read_slurm,
    requirement_of,
)


def install(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_programs_say_their_versions(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    install(tmp_path, "g++", "echo 13.3.0")
    install(tmp_path, "sbatch", "echo slurm 24.05.3")
    assert read_compiler(environ) == "13.3.0"
    assert read_slurm(environ) == ("24.05.3", ["squeue", "sacct", "scancel"])


def test_programs_that_are_not_there_have_no_version(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    assert read_compiler(environ) is None
    assert read_slurm(environ) == (None, ["sbatch", "squeue", "sacct", "scancel"])


def test_a_broken_compiler_counts_as_none(tmp_path: Path) -> None:
    install(tmp_path, "g++", "exit 1")
    assert read_compiler({"PATH": str(tmp_path)}) is None


class Daemon(BaseHTTPRequestHandler):
    """As much of the Docker Engine API as a client needs to learn the version."""

    def do_GET(self) -> None:
        body = json.dumps({"Version": "28.2.2", "ApiVersion": "1.50", "MinAPIVersion": "1.24"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def daemon() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Daemon)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"tcp://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_docker_daemon_says_its_version(daemon: str, tmp_path: Path) -> None:
    install(tmp_path, "docker", "echo Docker version 28.1.0, build 1234")
    found = read_docker({"PATH": str(tmp_path), "DOCKER_HOST": daemon})
    assert (found.client, found.daemon, found.problem) == ("28.1.0", "28.2.2", None)


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("unix:///no/such/docker.sock", "/no/such/docker.sock: no such file or directory"),
        ("tcp://127.0.0.1:1", "connection refused"),
        ("nonsense://x", "Invalid"),
    ],
)
def test_a_docker_daemon_that_does_not_answer_has_a_reason(host: str, problem: str, tmp_path: Path) -> None:
    found = read_docker({"PATH": str(tmp_path), "DOCKER_HOST": host})
    assert (found.client, found.daemon) == (None, None)
    assert problem in (found.problem or "")


def test_a_dead_docker_socket_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert read_docker({"DOCKER_HOST": f"unix://{path}"}).problem == f"{path}: connection refused"


def test_requirements_come_from_the_projects_own_metadata() -> None:
    assert check_version("2.13.0", requirement_of("torch"))
    assert not check_version("2.14.0", requirement_of("torch"))
    assert requirement_of("no-such-distribution") == ""


@pytest.mark.parametrize(
    ("version", "requirement", "accepted"),
    [
        ("2.13.0+cpu", "<2.14,>=2.13", True),
        ("2.13", ">=2.13.0", True),
        ("2.14.0.dev1", "<2.14", False),
        ("2.12.9", ">=2.13", False),
        ("3", ">2.9,<=3", True),
        ("1.2.3", "==1.2.3", True),
        ("1.2.4", "==1.2.3", False),
        ("1.2.3", "", True),
        ("1.2.3", "!=1.2.2", True),
    ],
)
def test_versions_are_compared_by_their_release(version: str, requirement: str, accepted: bool) -> None:
    assert check_version(version, requirement) is accepted


def test_packages_are_judged() -> None:
    assert package_problem("pydantic") is None
    assert package_problem("no-such-distribution") == "no-such-distribution is not installed"
