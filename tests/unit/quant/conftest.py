"""A small trained model, texts, and every format's export of it, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.demo import some_docs, train_small
from torch import Tensor

from trtx.models.formats import QuantFormat
from trtx.quant.modelopt import quantize_checkpoint

MAX_LENGTH, BATCH_SIZE = 64, 8


@dataclass(frozen=True)
class Export:
    """What one calibration left."""

    folder: Path
    report: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    @property
    def quantization(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder / "hf_quant_config.json").read_text())["quantization"]
        return facts


def calibrate(model: Path, data: Path, output: Path, **format_: Any) -> Export:
    output.mkdir(parents=True)
    report = quantize_checkpoint(
        model,
        data,
        output,
        QuantFormat(**format_),
        max_length=MAX_LENGTH,
        batch_size=BATCH_SIZE,
        seed=7,
        say=lambda text: None,
        progress=lambda done, total, unit: None,
    )
    return Export(output, report)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("quant") / "model")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), some_docs()["train"][:40], some_docs()["validation"][:30])


def write_data(folder: Path, calibration: list[str], held_out: list[str]) -> Path:
    for name, texts in (("calibration", calibration), ("heldout", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="session")
def export(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Export]:
    """Calibrate the small model in a format; a format asked for again is not made again."""
    made: dict[tuple[str, str], Export] = {}
    # AWQ's search rounds all weights once for every choice and every batch.
    little = write_data(tmp_path_factory.mktemp("little"), some_docs()["train"][:10], some_docs()["validation"][:30])
    slow = ("w4a8_awq", "nvfp4_awq")

    def make(algorithm: str, kv_cache: str = "auto") -> Export:
        if (algorithm, kv_cache) not in made:
            output = tmp_path_factory.mktemp("exports") / "out"
            texts = little if algorithm in slow else data
            made[algorithm, kv_cache] = calibrate(model, texts, output, algorithm=algorithm, kv_cache=kv_cache)
        return made[algorithm, kv_cache]

    return make
