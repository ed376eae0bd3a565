"""Recipes for TensorRT-LLM that run to their end in a container of stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from support.project import Project, make_project
from support.trtllm_standins import StandIns

IMAGE = "registry.example.com/trtllm:{}@sha256:" + "a" * 64


def make_container_project(folder: Path, standins: StandIns, **environ: str) -> Project:
    """A project whose commands see the stand-ins, as inside the release's container."""
    made = make_project(folder / "project", folder / "cache")
    own = {name: value for name, value in made.environ.items() if name not in ("PATH", "PYTHONPATH")}
    return Project(made.folder, {**own, **environ, **_visible(standins)})


def _visible(standins: StandIns) -> dict[str, str]:
    return {name: standins.environ[name] for name in ("PATH", "PYTHONPATH", "TRTX_TRTLLM_ROOT")}


def write_recipe(project: Project, source: Path, release: str, flow: str, **changes: Any) -> Path:
    """Write recipe.yaml: one target with two ranks; `changes` replace sections, `engine` settings of that section."""
    engine = {
        "backend": "tensorrt-llm",
        "release": release,
        "flow": flow,
        "container": IMAGE.format(release),
        "limits": {"max_batch_size": 4, "max_num_tokens": 256, "max_seq_len": 64},
        **changes.pop("engine", {}),
    }
    recipe = {
        "schema": "trtx/v1",
        "name": "small",
        "model": {"source": f"file://{source}"},
        "quantization": {"bf16": {"algorithm": "none"}},
        "engine": engine,
        "targets": {"h100": {"gpu": "h100-sxm-80gb", "parallelism": {"tensor": 2}}},
        "benchmark": {
            "workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [2]}},
            "repeats": 2,
        },
        **changes,
    }
    path = project.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
