"""The figures of the quickstart: the demo model learned something, and quantization damage can be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trtx.cache.store import Store

RECIPE = "recipes/quickstart.yaml"


@pytest.fixture(scope="module")
def outputs(quickstart: Any, shared_cache: Path) -> dict[str, Path]:
    """The output folder of every step, by its id."""
    store = Store(shared_cache)
    return {step["id"]: store.output(step["key"]) for step in quickstart.json("plan", RECIPE)["steps"]}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_demo_model_is_far_better_than_the_unigram(outputs: dict[str, Path]) -> None:
    summary = read(outputs["download/model"] / "trtx_demo.json")
    assert 1_000_000 <= summary["parameters"] <= 4_000_000
    assert summary["bits_per_byte"] < 2.2
    assert 3.5 < summary["unigram_bits_per_byte"] < 4.3


def test_quantization_damage_shows_and_is_small(outputs: dict[str, Path]) -> None:
    reports = {
        step.partition("/")[2]: read(path / "trtx_calibration.json")
        for step, path in outputs.items()
        if step.startswith("calibrate/")
    }
    assert len({report["perplexity"]["before"] for report in reports.values()}) == 1
    assert all(report["bits_per_byte"]["before"] < 2.3 for report in reports.values())
    after = {name: report["perplexity"]["after"] for name, report in reports.items()}
    assert after["fp32"] < after["int8"] < after["int4"] < 1.1 * after["fp32"]


def test_held_out_rows_are_texts_the_model_was_not_trained_on(outputs: dict[str, Path]) -> None:
    from trtx.models.demo.corpus import collect_docs

    (dataset,) = {path for step, path in outputs.items() if step == "download/docs"}
    held_out = [json.loads(line)["text"] for line in (dataset / "heldout.jsonl").read_text().splitlines()]
    calibration = [json.loads(line)["text"] for line in (dataset / "calibration.jsonl").read_text().splitlines()]
    docs = collect_docs()
    assert set(held_out) <= set(docs["validation"])
    assert set(calibration) <= set(docs["train"])
