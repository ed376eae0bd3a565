"""Small real models for tests: the demo's own training on less text and for fewer steps."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from trtx.models.demo import corpus, train
from trtx.models.demo.config import DemoConfig

# Every matrix has a multiple of 128 columns, for the int4 formats.
SMALL = DemoConfig(
    hidden_size=128, intermediate_size=256, num_heads=2, num_kv_heads=1, steps=60, tokens_per_step=512, warmup_steps=5
)


@functools.cache
def some_docs() -> dict[str, list[str]]:
    """A part of the corpus, read once."""
    docs = corpus.collect_docs()
    return {"train": docs["train"][:400], "validation": docs["validation"][:40]}


def train_small(folder: Path, demo: DemoConfig = SMALL) -> Path:
    """Train a model in about a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "collect_docs", some_docs)
        train.train_model(demo, folder, lambda done, total, unit: None)
    return folder
