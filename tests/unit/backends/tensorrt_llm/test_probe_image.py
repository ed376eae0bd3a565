"""Reading an image: a container is created, read and removed, and never started. Docker is a stand-in with its API."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.trtllm_sources import VERSION, write_sources

from trtx.cli.main import main

IMAGE = "registry.example.com/tensorrt-llm:1"


class Daemon(ThreadingHTTPServer):
    """Answers as Docker's API for one image, whose files are a folder; notes what was asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Daemon

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def reply(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.endswith("/version"):
            self.reply({"ApiVersion": "1.44", "Version": "27.0"})
        elif url.path.endswith("/json"):
            self.reply({"Id": "c1", "Image": "sha256:0"})
        elif url.path.endswith("/archive"):
            self.archive(parse_qs(url.query)["path"][0])
        else:
            self.reply({"message": "no"}, 404)

    def archive(self, path: str) -> None:
        self.server.asked.append(f"read {path}")
        place = self.server.root / path.lstrip("/")
        if not place.exists():
            self.reply({"message": f"Could not find the file {path} in container"}, 404)
            return
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(place, arcname=place.name)
        stat = base64.b64encode(json.dumps({"name": place.name}).encode()).decode()
        self.answer(200, stream.getvalue(), {"X-Docker-Container-Path-Stat": stat})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        self.server.asked.append(self.path.split("/", 2)[2].partition("?")[0])
        if body.get("Image") == IMAGE:
            self.reply({"Id": "c1", "Warnings": []}, 201)
        else:
            self.reply({"message": f"No such image: {body.get('Image')}"}, 404)

    def do_DELETE(self) -> None:
        self.server.asked.append("remove")
        self.answer(204, b"")


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with Daemon(tmp_path / "image") as server:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_image_is_read_without_starting_it(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    write_sources(daemon.root, package="usr/local/lib/python3.12/dist-packages", scripts="app/tensorrt_llm")
    assert main(["probe", IMAGE, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["source"], document["surface"]["version"]) == (IMAGE, VERSION)
    assert document["covered"] == ["tensorrt_llm", "examples"]
    assert "quantize.py" in document["surface"]["tools"]
    assert daemon.asked[0] == "containers/create"
    assert daemon.asked[-1] == "remove"
    assert not [word for word in daemon.asked if "start" in word]


def test_an_image_that_is_not_here_is_not_fetched(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "other/image:2"]) == 2
    err = capsys.readouterr().err
    assert "there is no image other/image:2 here" in err
    assert "docker pull other/image:2" in err


def test_an_image_without_tensorrt_llm_is_refused_and_its_container_removed(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.root.mkdir()
    assert main(["probe", IMAGE]) == 2
    assert f"{IMAGE} holds no TensorRT-LLM" in capsys.readouterr().err
    assert daemon.asked[-1] == "remove"


def test_without_docker_an_image_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert main(["probe", IMAGE]) == 6
    err = capsys.readouterr().err
    assert err.startswith(f"error: {IMAGE} is no folder, and reading an image needs Docker\n")
    assert "docker.sock: no such file or directory" in err


def test_a_path_that_is_no_folder_is_no_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "./nowhere"]) == 2
    assert "there is no folder ./nowhere" in capsys.readouterr().err
