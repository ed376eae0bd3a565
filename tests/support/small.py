"""A project that takes a moment: a random model of two layers in a folder, and a recipe that names it."""

from __future__ import annotations

import yaml
from support.checkpoints import make_llama
from support.project import Project

SMALL_RECIPE = {
    "schema": "trtx/v1",
    "name": "small",
    "model": {"source": "file://model"},
    "quantization": {"fp32": {"algorithm": "none"}},
    "targets": {"cpu": {"gpu": "cpu"}},
    "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
}


def write_small_project(project: Project) -> Project:
    """Write the model and recipe.yaml. No library can read its tokenizer: calibrate fails at once."""
    make_llama(project.folder / "model")
    (project.folder / "model" / "tokenizer.json").write_text("{}")
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(SMALL_RECIPE, sort_keys=False))
    return project
