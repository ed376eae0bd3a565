"""What the documents tell a reader to type works, and what they link to exists."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.shell_blocks import Block, find_blocks, problems

from trtx.cli.main import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
)
# Ports the documents name; a test uses a free one instead.
PORT = re.compile(r"\b8000\b")
SERVER_START_S = 120


def blocks_of(document: str) -> list[Block]:
    return find_blocks(document, (ROOT / document).read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of this tree with an environment in `.venv` that make takes as installed."""
    target = tmp_path_factory.mktemp("clone") / "trtx"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_symlink() or source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    (target / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.endswith(".stamp"):
            (target / ".venv" / path.name).symlink_to(path)
    for name in ("engine.stamp", "dev.stamp"):
        (target / ".venv" / name).touch()
    return target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_exists(document: str) -> None:
    assert [problem for block in blocks_of(document) for problem in problems(block, ROOT)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not ((ROOT / document).parent / target).exists()] == []


def test_the_quick_start_is_run_and_not_only_looked_at() -> None:
    kinds = [block.kind for block in blocks_of("README.md")]
    assert "serve" in kinds, "README.md starts the server it has just built"
    assert kinds.count("run") >= 2, "README.md builds something and asks it something"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_whole_recipe_of_a_document_is_valid(document: str, tmp_path: Path) -> None:
    for number, text in enumerate(re.findall(r"```yaml\n(schema: .*?)```", (ROOT / document).read_text(), re.DOTALL)):
        path = tmp_path / f"recipe-{number}.yaml"
        path.write_text(text)
        assert main(["validate", str(path)]) == 0, f"{document}\n{text}"


def test_the_readme_shows_a_whole_recipe() -> None:
    assert "```yaml\nschema: trtx/v1\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "document", [name for name in DOCUMENTS if any(b.kind in ("run", "serve") for b in blocks_of(name))]
)
def test_the_commands_of_a_document_work_when_typed_in_order(
    document: str, tree: Path, quickstart: Any, shared_cache: Path
) -> None:
    # The quickstart is in the cache by now, so that what is typed here is planned again and run only where it is new.
    reader = Reader(tree, make_environment(shared_cache))
    with ExitStack() as servers:
        port = 8000
        for block in blocks_of(document):
            if block.kind == "serve":
                port = servers.enter_context(reader.serving(block))
            elif block.kind == "run":
                answer = reader.run(PORT.sub(str(port), block.script))
                assert answer.returncode == 0, f"{document}:{block.line}\n{answer.stdout}\n{answer.stderr}"
                if "/v1/" in block.script:
                    assert '"choices"' in answer.stdout, f"{document}:{block.line} got {answer.stdout}"


def make_environment(cache: Path) -> dict[str, str]:
    """A shell's, without what the make or the environment that runs the tests has put there."""
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"TRTX_CACHE_DIR": str(cache)}


@dataclass(frozen=True)
class Reader:
    """Somebody who types what a document says."""

    folder: Path
    environ: dict[str, str]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False)

    @contextmanager
    def serving(self, block: Block) -> Iterator[int]:
        """Run a block that starts a server, on a free port, until the context ends. Yields the port."""
        port = free_port()
        script = PORT.sub(str(port), block.script).rstrip().removesuffix("&").rstrip()
        if str(port) not in script:
            script += f" --port {port}"
        log = self.folder / "server.log"
        with log.open("wb") as stream:
            # exec: the process that gets the signal at the end is the server itself.
            command = ["bash", "-euc", f"exec {script}"]
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environ, stdout=stream, stderr=subprocess.STDOUT
            )
            try:
                wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
                yield port
            finally:
                process.terminate()
                process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()}"
        try:
            with opener.open(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:  # Not listening yet, or an answer that says so.
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
    pytest.fail(f"no answer from {url} in {SERVER_START_S} s:\n{log.read_text()}")
