"""Starts this deployment: checks its files and this container, then becomes `trtllm-serve`.

    python3 entrypoint.py [options of trtllm-serve]
    python3 entrypoint.py --triton     becomes Triton on the model repository in triton/
    python3 entrypoint.py --check      only says whether the engine fits here

TensorRT refuses an engine of another version or another GPU when it is loaded, late and in few words, and TensorRT-LLM
only logs that an engine's version is not its own. TRTX_VERIFY chooses which files are compared with SHA256SUMS first:
`all` (default) that is served, or `code`: all but engines and weights, whose many gigabytes take their time.
TRTX_STRICT_GPU=1 asks for the model of GPU on which the engine was built, too. Needs the standard library only. Exit
codes: 2 usage, 6 this container or machine does not fit, 8 a file is not what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCOPES = ("all", "code")
EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_VERIFICATION = 2, 6, 8
REPOSITORY = "triton/models/"
LARGE = (".engine", ".safetensors")
LIBRARY = ("tensorrt_llm", "tensorrt-llm")
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
# A plan depends on these components of TensorRT's version; the fourth counts builds of one release.
TENSORRT_COMPONENTS = 3


class Refusal(Exception):
    """Why the server is not started."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def read(name: str) -> str:
    """A file of the deployment's own."""
    try:
        return (HERE / name).read_text(encoding="utf-8")
    except OSError as error:
        raise Refusal(EXIT_VERIFICATION, f"cannot read {name}: {error.strerror}; copy the folder again") from error


def read_settings() -> dict[str, Any]:
    """How the deployment is served."""
    try:
        return dict(json.loads(read("deployment.json")))
    except ValueError as error:
        raise Refusal(EXIT_VERIFICATION, f"deployment.json is damaged: {error}; copy the folder again") from error


def verify_files(scope: str) -> None:
    """Compare what is served with SHA256SUMS: engine, checkpoint, and where it is here the repository of Triton."""
    if scope not in SCOPES:
        raise Refusal(EXIT_USAGE, f"TRTX_VERIFY is {scope!r}; it must be one of {', '.join(SCOPES)}")
    for line in read("SHA256SUMS").splitlines():
        expected, _, name = line.partition("  ")
        if not is_served(name) or (scope == "code" and name.endswith(LARGE)):
            continue
        digest = hashlib.sha256()
        try:
            with (HERE / name).open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise Refusal(EXIT_VERIFICATION, f"cannot read {name}: {error.strerror}; copy the folder again") from error
        if digest.hexdigest() != expected:
            raise Refusal(EXIT_VERIFICATION, f"{name} is not the file that was packaged; copy the folder again")


def is_served(name: str) -> bool:
    """Whether a server reads the file. A container of trtllm-serve has no repository of Triton, and needs none."""
    return name.startswith(("engine/", "checkpoint/")) or (name.startswith(REPOSITORY) and (HERE / REPOSITORY).is_dir())


def installed(names: tuple[str, ...]) -> str | None:
    """The version of the first of these distributions that is here."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_container(made: dict[str, Any]) -> None:
    """Refuse a container of another release or another TensorRT."""
    release, here = made["tensorrt_llm"], installed(LIBRARY)
    image = made["base"]
    if here is None:
        raise Refusal(EXIT_ENVIRONMENT, f"this container has no TensorRT-LLM; use {image}")
    if here.partition("+")[0] != release:
        what = "the engine was built" if made["flow"] == "engine" else "the options file was written"
        raise Refusal(
            EXIT_ENVIRONMENT, f"{what} for TensorRT-LLM {release}, and this container has {here}; use {image}"
        )
    built_with, has = made["tensorrt"], installed(TENSORRT)
    if built_with and has and components(built_with) != components(has):
        raise Refusal(
            EXIT_ENVIRONMENT,
            f"the engine was built with TensorRT {built_with}, and this container has {has}; use {image}",
        )


def components(version: str) -> list[str]:
    return version.partition("+")[0].split(".")[:TENSORRT_COMPONENTS]


def check_gpus(made: dict[str, Any], *, strict: bool) -> None:
    """Refuse GPUs that the engine was not built for, or too few of them."""
    gpus = read_gpus()
    wanted, count = made["compute_capability"], made["launch"]["gpus_per_host"]
    if len(gpus) < count:
        raise Refusal(
            EXIT_ENVIRONMENT, f"it needs {count} GPU(s) and {len(gpus)} are visible; start the container with --gpus"
        )
    for capability, name in gpus:
        if wanted is not None and capability != wanted:
            raise Refusal(
                EXIT_ENVIRONMENT,
                f"the engine was built for compute capability {wanted} ({made['gpu']}), and {name} has {capability};"
                " build it for this GPU",
            )
        if strict and made["gpu"] is not None and name != made["gpu"]:
            raise Refusal(EXIT_ENVIRONMENT, f"the engine was built on {made['gpu']}, and this is {name}")


def read_gpus() -> list[tuple[str, str]]:
    """Compute capability and name of every visible GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise Refusal(EXIT_ENVIRONMENT, "there is no nvidia-smi; start the container with --gpus")
    command = [program, "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Refusal(EXIT_ENVIRONMENT, f"nvidia-smi does not answer: {error}") from error
    rows = [line.split(",", 1) for line in answer.stdout.splitlines() if "," in line]
    return [(capability.strip(), name.strip()) for capability, name in rows]


def serve_arguments(settings: dict[str, Any], extra: list[str]) -> list[str]:
    """The command line of the server; later options win over earlier ones."""
    triton = extra[:1] == ["--triton"]
    words = settings["triton" if triton else "serve"]
    if not words:
        missing = "no Triton repository is packaged" if triton else f"TensorRT-LLM {settings['tensorrt_llm']} has none"
        raise Refusal(EXIT_USAGE, f"there is no such server: {missing}")
    words = [word.replace("{folder}", str(HERE)) for word in words]
    # A server of several ranks is one MPI job, whose parts ":" divides; the first part listens.
    end = words.index(":") if triton and ":" in words else len(words)
    return [*words[:end], *(extra[1:] if triton else extra), *words[end:]]


def main() -> None:
    """Replace this process with the server, or say why not and exit."""
    extra = sys.argv[1:]
    command: list[str] = []
    try:
        settings = read_settings()
        verify_files(os.environ.get("TRTX_VERIFY", "all"))
        check_container(settings)
        check_gpus(settings, strict=os.environ.get("TRTX_STRICT_GPU") == "1")
        if extra[:1] != ["--check"]:
            command = serve_arguments(settings, extra)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(refusal.exit_code)
    if not command:
        print("the engine fits this container and its GPUs")
        return
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"error: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_ENVIRONMENT)


if __name__ == "__main__":
    main()
