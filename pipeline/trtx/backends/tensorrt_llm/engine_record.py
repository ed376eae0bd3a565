"""An engine folder as trtllm-build leaves it, held against a spec before it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.errors import VerificationFailed
from trtx.files import read_json

CONFIG_NAME = "config.json"


def check_engine_folder(spec: TrtllmSpec, folder: Path) -> None:
    """Raise VerificationFailed unless a folder holds what the spec serves.

    The engine flow's: config.json of trtllm-build with the spec's release and ranks, and an engine for every rank. The
    PyTorch flow's: a Hugging Face checkpoint.
    """
    config = _read_config(folder)
    if spec.flow == "pytorch":
        if "build_config" in config:
            raise VerificationFailed(
                f"{folder} is an engine of trtllm-build",
                why="the PyTorch flow serves a Hugging Face checkpoint",
                fix="give the checkpoint's folder, or use flow: engine",
            )
        return
    if "build_config" not in config or "pretrained_config" not in config:
        raise VerificationFailed(
            f"{folder} is not an engine of trtllm-build",
            why=f"its {CONFIG_NAME} has no build_config",
            fix="build the engine first, and give the folder that trtllm-build wrote",
        )
    if config.get("version") != spec.release:
        raise VerificationFailed(
            f"the engine in {folder} was built by TensorRT-LLM {config.get('version')}, not {spec.release}",
            why="an engine runs in the release that built it only",
            fix="build it again, or serve it with the release it is of",
        )
    _check_ranks(spec, folder, config)


def _check_ranks(spec: TrtllmSpec, folder: Path, config: dict[str, Any]) -> None:
    world = config["pretrained_config"].get("mapping", {}).get("world_size", 1)
    if world != spec.ranks.world_size:
        raise VerificationFailed(
            f"the engine in {folder} has {world} ranks and the recipe {spec.ranks.world_size}",
            why="ranks are fixed when a checkpoint is converted",
            fix="convert and build again with the recipe's parallelism",
        )
    for rank in range(world):
        if not (folder / f"rank{rank}.engine").is_file():
            raise VerificationFailed(
                f"{folder} has no rank{rank}.engine", why=f"its {CONFIG_NAME} says {world} ranks", fix="build it again"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise VerificationFailed(
            f"{folder} has neither an engine nor a checkpoint",
            why=f"{path} cannot be read: {error}",
            fix="give the folder that the build wrote",
        ) from error
    if not isinstance(found, dict):
        raise VerificationFailed(f"{path} is not a JSON object", fix="give the folder that the build wrote")
    return found
