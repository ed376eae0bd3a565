"""A recipe of two tensor-parallel ranks on processors, from the plan to an engine that answers."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from support.checkpoints import make_unified
from support.engines import write_tokenizer_folder
from support.project import Project, make_project

RECIPE: dict[str, Any] = {
    "schema": "trtx/v1",
    "name": "ranks",
    "model": {"source": "file://model"},
    "quantization": {
        "stored": {
            "algorithm": "checkpoint",
            "calibration": {"dataset": "file://texts.txt", "samples": 1, "heldout": 16, "max_length": 32},
        }
    },
    "targets": {"pair": {"gpu": "cpu", "parallelism": {"tensor": 2}}},
    "engine": {"limits": {"max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 64}},
    "benchmark": {
        "workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [2], "requests": 4}},
        "repeats": 1,
    },
}


def write_project(project: Project, parallelism: dict[str, int]) -> Project:
    shape = {"vocab_size": 258, "num_hidden_layers": 1}
    make_unified(project.folder / "model", "int8_wo", **shape)
    write_tokenizer_folder(project.folder / "model")
    (project.folder / "texts.txt").write_text("\n\n".join(f"text number {number}, and more" for number in range(64)))
    write_recipe(project, parallelism)
    return project


def write_recipe(project: Project, parallelism: dict[str, int], **changes: Any) -> None:
    targets = {"pair": {"gpu": "cpu", "parallelism": parallelism}}
    text = yaml.safe_dump(RECIPE | {"targets": targets} | changes, sort_keys=False)
    (project.folder / "recipe.yaml").write_text(text)


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("ranks")
    project = write_project(make_project(folder / "project", folder / "cache"), {"tensor": 2})
    done = project.trtx("apply", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return project
