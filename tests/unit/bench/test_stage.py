from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.engines import make_engine

from trtx.errors import VerificationFailed
from trtx.runtime.engine import Engine
from trtx.runtime.scheduler import SchedulerSettings
from trtx.stages import benchmark
from trtx.stages.base import StepContext
from trtx.stages.params import BenchmarkParams, Scheduling, Workload

PARAMS = BenchmarkParams(
    workloads={
        "chat": Workload(input_tokens=8, output_tokens=4, concurrency=(1, 2), requests=3),
        "long": Workload(input_tokens=20, output_tokens=2, concurrency=(3,), requests=4),
    },
    repeats=2,
    warmup_requests=1,
    kv_cache_bytes=1 << 20,
    memory_fraction=0.5,
    scheduler=Scheduling(policy="guaranteed-no-evict", chunked_prefill=False, prefix_reuse=False),
    seed=3,
)


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    names = ("engine", "weights", "checkpoint", "model")
    (tmp_path / "output").mkdir()
    return StepContext(
        inputs={name: tmp_path / name for name in names},
        output=tmp_path / "output",
        work=tmp_path,
        keys={name: f"key of {name}" for name in names},
        progress_file=tmp_path / "progress.json",
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the stage asks the engine's check and the engine's loader for, in order."""
    seen: list[tuple[str, Any]] = []

    def load(folder: Path, **options: Any) -> Engine:
        seen.append(("load", (folder, options)))
        return make_engine()

    monkeypatch.setattr(benchmark, "ensure_checked", lambda *arguments: seen.append(("check", arguments)))
    monkeypatch.setattr(Engine, "load", load)
    return seen


def test_the_pair_is_checked_then_loaded_then_measured(
    context: StepContext, calls: list[tuple[str, Any]], tmp_path: Path
) -> None:
    summary = benchmark.run(PARAMS, context)
    folders = [tmp_path / name for name in ("engine", "weights", "checkpoint", "model")]
    evidence = (tmp_path / "engine" / "check.json", tmp_path / "output" / "check.json")
    options = {
        "weights": tmp_path / "weights",
        "kv_cache_bytes": 1 << 20,
        "memory_fraction": 0.5,
        "settings": SchedulerSettings("guaranteed-no-evict", chunked_prefill=False, prefix_reuse=False),
    }
    assert calls == [
        ("check", (*folders, "key of weights", *evidence)),
        ("load", (tmp_path / "engine", options)),
    ]
    assert list(summary["output_tokens_per_s"]) == ["chat@1", "chat@2", "long@3"]
    report = json.loads((context.output / "benchmark.json").read_text())
    assert [(r["workload"], r["concurrency"], r["requests"]) for r in report["results"]] == [
        ("chat", 1, 6),
        ("chat", 2, 6),
        ("long", 3, 8),
    ]
    assert len((context.output / "benchmark.csv").read_text().splitlines()) == 4
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (23, 23, "requests")


def test_nothing_is_measured_when_the_check_fails(
    context: StepContext, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise VerificationFailed("the engine does not answer like its model")

    monkeypatch.setattr(benchmark, "ensure_checked", fail)
    with pytest.raises(VerificationFailed):
        benchmark.run(PARAMS, context)
    assert calls == []
    assert list(context.output.iterdir()) == []
