"""The Python sources of TensorRT-LLM out of a container image: a container is created, never started, and read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.hardware.software import read_docker

# Where images have the package: Debian's and NVIDIA's Python, a virtual environment, conda.
PYTHONS = ("3.12", "3.10", "3.11", "3.13")
SITES = tuple(
    f"{prefix}/lib/python{version}/{name}"
    for prefix in ("/usr/local", "/usr", "/opt/venv", "/opt/conda")
    for version in PYTHONS
    for name in ("dist-packages", "site-packages")
)
SCRIPT_FOLDERS = ("/app/tensorrt_llm/examples", "/app/tensorrt_llm/benchmarks")
PACKAGE = "tensorrt_llm"
# Bounds of what is written from an image: its other files are passed over.
MAX_FILE_BYTES = 4 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_FILES = 50_000
DOCKER_TIMEOUT_S = 600


def export_sources(image: str, folder: Path, environ: Mapping[str, str]) -> None:
    """Write the package's and the scripts' Python files of an image into a folder, at their places in it.

    Raises EnvironmentProblem without Docker, UsageProblem for an image that is not here or has no TensorRT-LLM.
    """
    with _container(image, environ) as container:
        for site in SITES:
            if _export(container, f"{site}/{PACKAGE}", folder, site):
                break
        else:
            raise UsageProblem(
                f"{image} holds no TensorRT-LLM",
                why=f"none of the usual Python folders has {PACKAGE}",
                fix="unpack the image and name its site-packages folder",
            )
        for path in SCRIPT_FOLDERS:
            _export(container, path, folder, str(PurePosixPath(path).parent))


@contextmanager
def _container(image: str, environ: Mapping[str, str]) -> Iterator[Any]:
    import docker
    from docker.errors import DockerException, ImageNotFound
    from requests.exceptions import RequestException

    state = read_docker(environ)  # Asks the socket first: the docker package hides why nobody answers.
    if state.daemon is None:
        raise EnvironmentProblem(
            f"{image} is no folder, and reading an image needs Docker",
            why=state.problem or "no daemon answers",
            fix="start Docker, or name a folder",
        )
    client = docker.from_env(timeout=DOCKER_TIMEOUT_S, environment=dict(environ))
    try:
        # The command is never run; some images have none, and creating a container needs one.
        container = client.containers.create(image, command=["/never-run"], network_disabled=True)
        try:
            yield container
        finally:
            with suppress(DockerException, RequestException):
                container.remove(force=True)
    except ImageNotFound as error:
        raise UsageProblem(
            f"there is no image {image} here",
            why="trtx probe fetches none",
            fix=f"docker pull {image}, or name a folder",
        ) from error
    except (DockerException, RequestException) as error:
        raise EnvironmentProblem(
            f"Docker cannot read {image}", why=_last_line(error), fix="look at docker info and try again"
        ) from error
    finally:
        client.close()


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__


def _export(container: Any, path: str, folder: Path, parent: str) -> bool:
    """Copy the sources below a path of the container; False when it is not there."""
    from docker.errors import NotFound

    try:
        chunks, _ = container.get_archive(path)
    except NotFound:
        return False
    unpack_sources(io.BufferedReader(_Chunks(chunks)), folder / parent.strip("/"))
    return True


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            self._rest = next(self._chunks, b"")
            if not self._rest:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def unpack_sources(stream: IO[bytes], folder: Path) -> int:
    """Write the Python files of a tar stream below a folder; returns how many.

    Links, devices and every other file are passed over. Raises UsageProblem for a name that leads out of the folder,
    for more than the bounds, and for a damaged archive.
    """
    count, total = 0, 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if not member.isreg() or PurePosixPath(member.name).suffix != ".py":
                    continue
                parts = PurePosixPath(member.name).parts
                if member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name:
                    raise UsageProblem(
                        "the image's archive is refused",
                        why=f"the name {member.name!r} leads out of it",
                        fix="use another image",
                    )
                if member.size > MAX_FILE_BYTES:
                    continue
                count, total = count + 1, total + member.size
                if count > MAX_FILES or total > MAX_TOTAL_BYTES:
                    raise UsageProblem(
                        "the image's archive is refused",
                        why="it holds more Python than any release",
                        fix="use another image",
                    )
                content = archive.extractfile(member)
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read() if content else b"")
    except (tarfile.TarError, EOFError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UsageProblem(
            "the image's archive is damaged", why=str(error), fix="run the same command again"
        ) from error
    return count
