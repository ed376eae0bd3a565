"""What is installed beside Python packages: compiler, Docker, Slurm; and which versions of packages trtx accepts."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from trtx.hardware.versions import installed_version
from trtx.processes import ask

ANSWER_TIMEOUT_S = 10.0
# A daemon that is there answers at once.
DOCKER_TIMEOUT_S = 2

SLURM_COMMANDS = ("sbatch", "squeue", "sacct", "scancel")


@dataclass(frozen=True)
class Docker:
    """The client command and the daemon, each with its version or None; `problem` says why there is no daemon."""

    client: str | None
    daemon: str | None
    problem: str | None


def find_program(name: str, environ: Mapping[str, str]) -> str | None:
    """The path of a command, by the PATH of `environ`."""
    return shutil.which(name, path=environ.get("PATH", ""))


def read_compiler(environ: Mapping[str, str]) -> str | None:
    """Version of the C++ compiler that builds use, None when there is none."""
    path = find_program("g++", environ)
    answer = ask([path, "-dumpfullversion"], timeout_s=ANSWER_TIMEOUT_S) if path else None
    return answer.strip() if answer else None


def read_nvcc(environ: Mapping[str, str]) -> str | None:
    """Version of CUDA's compiler, of $CUDA_HOME or else of the PATH, such as `13.0.88`; None when there is none."""
    home = environ.get("CUDA_HOME")
    path = shutil.which("nvcc", path=f"{home}/bin") if home else find_program("nvcc", environ)
    answer = ask([path, "--version"], timeout_s=ANSWER_TIMEOUT_S) if path else None
    match = re.search(r"V(\d+\.\d+\.\d+)", answer or "")
    return match[1] if match else None


def read_slurm(environ: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Version of Slurm's client commands, None when there are none, and those that are missing."""
    missing = [name for name in SLURM_COMMANDS if find_program(name, environ) is None]
    path = find_program("sbatch", environ)
    answer = ask([path, "--version"], timeout_s=ANSWER_TIMEOUT_S) if path else None
    return (answer.strip().removeprefix("slurm ") if answer else None), missing


def read_docker(environ: Mapping[str, str]) -> Docker:
    """Ask the Docker daemon for its version, at DOCKER_HOST or the usual socket."""
    path = find_program("docker", environ)
    client = ask([path, "--version"], timeout_s=ANSWER_TIMEOUT_S) if path else None
    version = re.search(r"version ([^\s,]+)", client) if client else None
    daemon, problem = _ask_daemon(environ)
    return Docker(version.group(1) if version else None, daemon, problem)


def _ask_daemon(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    address = environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if address.startswith("unix://") and (problem := _socket_problem(address.removeprefix("unix://"))):
        return None, problem
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.from_env(timeout=DOCKER_TIMEOUT_S, environment=dict(environ))
        try:
            return str(client.version()["Version"]), None
        finally:
            client.close()
    except (DockerException, RequestException, OSError, KeyError, ValueError) as error:
        return None, _shorten(str(error))


def _socket_problem(path: str) -> str | None:
    """Why nobody answers at a socket; asked first because the docker package hides the reason and leaks the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(DOCKER_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
    return None


def _shorten(text: str) -> str:
    """The innermost message of an error of the docker package, which nests three of them."""
    for known in ("permission denied", "connection refused", "timed out", "name or service not known"):
        if known in text.lower():
            return known
    return text.splitlines()[0][:120] if text else "no answer"


def requirement_of(distribution: str) -> str:
    """What trtx's own metadata requires of a distribution, such as `<2.14,>=2.13`; empty when anything will do."""
    from importlib import metadata

    try:
        lines = metadata.requires("trtx") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*([^;]*)", line)
        if match and match.group(1).lower().replace("_", "-") == distribution:
            return match.group(2).strip().strip("()")
    return ""


def check_version(version: str, requirement: str) -> bool:
    """Whether a version satisfies comma-separated `>=`, `<`, `>`, `<=`, `==`; by release numbers only (PEP 440)."""
    release = _release(version)
    for part in filter(None, (part.strip() for part in requirement.split(","))):
        match = re.fullmatch(r"(>=|<=|==|<|>)\s*([0-9.]+).*", part)
        if match is None:
            continue
        operator, bound = match.group(1), _release(match.group(2))
        order = _compare(release, bound)
        holds = {">=": order >= 0, "<=": order <= 0, "==": order == 0, "<": order < 0, ">": order > 0}
        if not holds[operator]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _compare(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    for mine, other in zip_longest(left, right, fillvalue=0):
        if mine != other:
            return 1 if mine > other else -1
    return 0


def package_problem(distribution: str) -> str | None:
    """Why a Python package cannot be used: missing, or of a version trtx does not accept; None when all is well."""
    version = installed_version(distribution)
    if version is None:
        return f"{distribution} is not installed"
    requirement = requirement_of(distribution)
    if not check_version(version, requirement):
        return f"{distribution} is {version}, and trtx needs {requirement}"
    return None
