"""Whether a TensorRT-LLM engine fits the container that is to run it. Needs the standard library only, Python 3.8 on.

    python check_engine.py record ENGINE    where it was built: writes ENGINE/trtllm.json
    python check_engine.py check ENGINE     where it is to run: exit code 0, or 6 and one sentence on stderr

TensorRT refuses a plan of another TensorRT version or another compute capability when it is loaded, and TensorRT-LLM
only logs that the engine's version is not its own; both come late and say little. TRTX_STRICT_GPU=1 asks for the same
model of GPU, too, as tactics are timed on one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

RECORD_NAME = "trtllm.json"
EXIT_USAGE, EXIT_ENVIRONMENT = 2, 6
# Components of a version of TensorRT that its plans depend on; the fourth counts builds of one release.
TENSORRT_COMPONENTS = 3
# Names of the distribution by CUDA release; the plain one is the newest.
TENSORRT_NAMES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


class Mismatch(Exception):
    """Why the engine cannot run here, in one sentence."""


def read_container() -> dict[str, Any]:
    """What is here, with None for what cannot be found out: versions, and compute capability and name of every GPU."""
    gpus = _read_gpus()
    return {
        "tensorrt_llm": _version("tensorrt_llm", "tensorrt-llm"),
        "tensorrt": _version(*TENSORRT_NAMES),
        "compute_capabilities": None if gpus is None else sorted({capability for capability, _ in gpus}),
        "gpus": None if gpus is None else sorted({name for _, name in gpus}),
    }


def check(config: dict[str, Any], record: dict[str, Any], container: dict[str, Any], strict: bool = False) -> None:
    """Raise Mismatch unless the engine of `config` (its config.json) and `record` fits `container`; pure.

    `record` is {} for an engine without one: its own version is compared then, and nothing else.
    """
    version, here = config.get("version"), container["tensorrt_llm"]
    if here is None:
        raise Mismatch("this container has no TensorRT-LLM; use the image that the engine was packaged for")
    if version != here:
        raise Mismatch(f"the engine was built by TensorRT-LLM {version} and this container has {here}")
    built_with, has = record.get("tensorrt"), container["tensorrt"]
    if built_with and has and _first(built_with) != _first(has):
        raise Mismatch(f"the engine was built with TensorRT {built_with} and this container has {has}")
    _check_gpus(record, container, strict)


def _check_gpus(record: dict[str, Any], container: dict[str, Any], strict: bool) -> None:
    built_for, found = record.get("compute_capability"), container["compute_capabilities"]
    if built_for is None or found is None:
        return
    if not found:
        raise Mismatch(f"the engine was built for compute capability {built_for} and this container sees no GPU")
    # A machine may have other GPUs beside it, which nobody has to use.
    if built_for not in found:
        raise Mismatch(
            f"the engine was built for compute capability {built_for} and this container's GPU has {found[0]}"
        )
    names = container["gpus"] or [record.get("gpu")]
    if strict and record.get("gpu") and record["gpu"] not in names:
        raise Mismatch(f"the engine was tuned on {record['gpu']} and this container has {names[0]}")


def check_folder(engine: str, strict: bool | None = None) -> None:
    """`check` of a folder in this container. Raises Mismatch, also for a folder that is no engine."""
    folder = Path(engine)
    config = _read(folder / "config.json")
    if config is None or "build_config" not in config:
        raise Mismatch(f"{folder} is not an engine of TensorRT-LLM: it has no config.json of trtllm-build")
    world = config.get("pretrained_config", {}).get("mapping", {}).get("world_size", 1)
    missing = [rank for rank in range(world) if not (folder / f"rank{rank}.engine").is_file()]
    if missing:
        raise Mismatch(f"{folder} has no rank{missing[0]}.engine, and its config.json says {world} ranks")
    if strict is None:
        strict = os.environ.get("TRTX_STRICT_GPU") == "1"
    check(config, _read(folder / RECORD_NAME) or {}, read_container(), strict)


def write_record(engine: str) -> None:
    """Write what built the engine beside it."""
    here = read_container()
    capabilities, gpus = here["compute_capabilities"] or [], here["gpus"] or []
    made = {
        "tensorrt_llm": here["tensorrt_llm"],
        "tensorrt": here["tensorrt"],
        "compute_capability": capabilities[0] if len(capabilities) == 1 else None,
        "gpu": gpus[0] if len(gpus) == 1 else None,
    }
    (Path(engine) / RECORD_NAME).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _first(version: str) -> list[str]:
    return re.findall(r"\d+", version)[:TENSORRT_COMPONENTS]


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_gpus() -> list[tuple[str, str]] | None:
    """(compute capability, name) of every GPU; an empty list where the driver says there is none, None without one."""
    command = ["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    lines = [line.split(",", 1) for line in done.stdout.decode().splitlines() if "," in line]
    return [(capability.strip(), name.strip()) for capability, name in lines]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("check", "record"):
        print("usage: check_engine.py check|record ENGINE", file=sys.stderr)
        return EXIT_USAGE
    if arguments[0] == "record":
        write_record(arguments[1])
        return 0
    try:
        check_folder(arguments[1])
    except Mismatch as mismatch:
        print(f"error: {mismatch}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
