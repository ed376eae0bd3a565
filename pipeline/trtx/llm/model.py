"""From what a caller calls a model to the folder of an engine. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtx.errors import BY_NAME, EnvironmentProblem, StepFailed, UsageProblem
from trtx.paths import cache_dir
from trtx.recipe.schema import AS_STORED
from trtx.runtime.card import load_card
from trtx.runtime.folders import find_folders

# Limits of an engine that is built for a Hugging Face folder when nothing is said; max_seq_len ends at the model's.
DEFAULT_LIMITS = {"max_batch_size": 16, "max_num_tokens": 2048, "max_seq_len": 2048}


def find_engine(model: str | Path, *, dtype: str | None, quantization: str | None, limits: Mapping[str, int]) -> Path:
    """The deployment or engine folder of a model, which is built where it has to be.

    Raises UsageProblem for a model that is none, and what building it raises.
    """
    path = Path(model)
    if (path / "config.json").is_file() and not (path / "engine.json").is_file():
        return _build_checkpoint(path.absolute(), dtype or "auto", quantization or AS_STORED, limits)
    if path.is_dir():
        return path
    recipe = str(model).partition(":")[0]
    if recipe.endswith((".yaml", ".yml")) and Path(recipe).is_file():
        return _apply(str(model), Path.cwd(), Path("out"))
    raise UsageProblem(
        f"{model} is no model",
        why="it is neither a folder nor a recipe",
        fix="give a deployment folder, recipe.yaml:target/variant, or a folder with a Hugging Face model",
    )


def check_card(folder: Path, *, dtype: str | None, quantization: str | None, limits: Mapping[str, int]) -> None:
    """Raise UsageProblem when an engine is another than was asked for: how it is was decided when it was built."""
    card = load_card(find_folders(folder).engine)
    asked: dict[str, Any] = {**limits, "dtype": dtype, "quantization": quantization}
    found = {**card.limits.model_dump(), "dtype": card.dtype, "quantization": card.quantization.algorithm}
    for name, value in asked.items():
        if value not in (None, "auto", AS_STORED, found[name]):
            raise UsageProblem(
                f"{folder} has {name} {found[name]}, not {value}",
                why=f"{name} is compiled into an engine",
                fix=f"leave {name} out, or set it in the recipe and build the engine again",
            )


def _build_checkpoint(model: Path, dtype: str, quantization: str, limits: Mapping[str, int]) -> Path:
    """Build a Hugging Face model for this machine's processor by a recipe that is written down for it."""
    positions = json.loads((model / "config.json").read_bytes()).get("max_position_embeddings")
    chosen = {**DEFAULT_LIMITS, **limits}
    if "max_seq_len" not in limits and positions is not None:
        chosen["max_seq_len"] = min(chosen["max_seq_len"], positions)
    # A little held-out text to check the engine with. It calibrates nothing: what needs that is refused without a text.
    text = {"samples": 64, "heldout": 32, "max_length": min(128, chosen["max_seq_len"])}
    recipe = {
        "schema": "trtx/v1",
        "name": "llm",
        "model": {"source": f"file://{model}"},
        "quantization": {"variant": {"algorithm": quantization, "calibration": text}},
        "engine": {"dtype": dtype, "limits": chosen},
        "targets": {"here": {"gpu": "cpu"}},
    }
    written = json.dumps(recipe, indent=2)  # JSON is YAML, too
    # Beside the cache, which has nothing in it but its own.
    cache = cache_dir(os.environ)
    folder = cache.with_name(f"{cache.name}-llm") / hashlib.sha256(written.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(written)
    return _apply("recipe.yaml", folder, Path("out"))


def _apply(recipe: str, folder: Path, out_dir: Path) -> Path:
    """The package of the only cell that a recipe or its selection has, by `trtx apply` in a process of its own.

    The messages of the build go to stderr as they come.
    """
    argv = [sys.executable, "-m", "trtx.cli", "apply", recipe, "--out-dir", str(out_dir), "-o", "json"]
    done = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        raise EnvironmentProblem(
            f"`trtx apply {recipe}` ended with exit code {done.returncode}",
            why="its own message stands above",
            fix=f"correct it and try it in a shell: cd {folder} && trtx apply {recipe}",
        ) from None
    if "error" in document:
        error = document["error"]
        raise BY_NAME.get(error["kind"], StepFailed)(error["what"], why=error["why"], fix=error["fix"])
    packages: dict[str, str] = document["packages"]
    if len(packages) != 1:
        raise UsageProblem(
            f"{recipe} has {len(packages)} engines",
            why=", ".join(packages) or "none of its cells has a package",
            fix="name one, such as recipe.yaml:target/variant",
        )
    return folder / next(iter(packages.values()))
