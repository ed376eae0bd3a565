"""The package step: what it takes as proof, and what it does with a benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trtx.backends.inductor import evidence
from trtx.backends.inductor.evidence import Evidence
from trtx.bench.report import BenchmarkReport, EngineFacts, LevelResult, MachineFacts, write_report
from trtx.bench.stats import Percentiles, Spread
from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import sha256_bytes, write_json
from trtx.runtime.card import load_card
from trtx.stages.base import StepContext, load_stage
from trtx.stages.params import PackageParams, Scheduling

KEYS = {name: sha256_bytes(name.encode()) for name in ("engine", "weights", "benchmark", "checkpoint", "model")}
PARAMS = PackageParams(
    name="quickstart",
    cell="cpu/fp32",
    image=None,
    base="docker.io/library/python:3.12-slim-bookworm",
    emit=("compose",),
    triton_base=None,
    port=8000,
    kv_cache_bytes=None,
    memory_fraction=0.5,
    scheduler=Scheduling(policy="max-utilization", chunked_prefill=True, prefix_reuse=True),
)


def make_evidence(engine: Path, weights_key: str) -> Evidence:
    """The evidence of the build, as if it had met other weights."""
    body = Evidence.model_validate_json((engine / "check.json").read_bytes())
    return body.model_copy(update={"weights_key": weights_key})


def write_evidence(folder: Path, engine: Path, weights_key: str) -> None:
    body = make_evidence(engine, weights_key).model_dump(mode="json", by_alias=True)
    write_json(folder / "check.json", body)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, engine: Path) -> Iterator[list[str]]:
    """Weights keys that had to be checked now; the check itself is not what is tested here."""
    asked: list[str] = []

    def run_check(*arguments: Any) -> Evidence:
        asked.append(arguments[4])
        return make_evidence(engine, arguments[4])

    monkeypatch.setattr(evidence, "run_check", run_check)
    yield asked


@pytest.fixture
def benchmark(tmp_path: Path, engine: Path) -> Path:
    card = load_card(engine)
    folder = tmp_path / "in" / "benchmark"
    latency = Percentiles.of([[0.0104, 0.0106]])
    level = LevelResult(
        workload="chat",
        input_tokens=64,
        output_tokens=32,
        concurrency=4,
        requests=8,
        failed=0,
        output_tokens_per_s=Spread.of([1233.0, 1235.0]),
        requests_per_s=Spread.of([1.0, 1.0]),
        time_to_first_token_s=latency,
        inter_token_latency_s=None,
        peak_rss_bytes=512 * 2**20,
    )
    report = BenchmarkReport(
        machine=MachineFacts(
            cpu_model="A CPU | of <b>mine</b>", num_cpus=2, memory_bytes=2**30, isa=None, num_threads=2, torch="2.13.0"
        ),
        engine=EngineFacts.of(card, kv_blocks=10),
        notes=("fp8 is simulated",),
        repeats=2,
        warmup_requests=1,
        seed=7,
        results=(level,),
    )
    folder.mkdir(parents=True)
    write_report(folder, report)
    write_evidence(folder, engine, KEYS["weights"])
    return folder


def run(tmp_path: Path, inputs: dict[str, Path], params: PackageParams = PARAMS) -> tuple[Path, dict[str, Any]]:
    output = tmp_path / "output"
    output.mkdir()
    inputs = inputs | dict.fromkeys(("checkpoint", "model"), tmp_path)
    context = StepContext(inputs, output, tmp_path, {name: KEYS[name] for name in inputs})
    return output, load_stage("package").run(params, context)


def test_a_pair_that_the_build_checked_is_not_checked_again(
    tmp_path: Path, engine: Path, weights: Path, checks: list[str]
) -> None:
    write_evidence(engine, engine, KEYS["weights"])
    output, summary = run(tmp_path, {"engine": engine, "weights": weights})
    assert checks == []
    assert json.loads((output / "engine/check.json").read_bytes())["weights_key"] == KEYS["weights"]
    assert summary["image"].startswith("trtx/quickstart:cpu-fp32-")


def test_weights_the_programs_have_not_met_are_checked_before_they_are_packaged(
    tmp_path: Path, engine: Path, weights: Path, checks: list[str]
) -> None:
    write_evidence(engine, engine, sha256_bytes(b"other weights"))
    output, _ = run(tmp_path, {"engine": engine, "weights": weights})
    assert checks == [KEYS["weights"]]
    assert json.loads((output / "engine/check.json").read_bytes())["weights_key"] == KEYS["weights"]


def test_the_benchmark_s_evidence_for_this_pair_is_enough(
    tmp_path: Path, engine: Path, weights: Path, benchmark: Path, checks: list[str]
) -> None:
    write_evidence(engine, engine, sha256_bytes(b"other weights"))
    run(tmp_path, {"engine": engine, "weights": weights, "benchmark": benchmark})
    assert checks == []


def test_a_pair_that_fails_its_check_is_not_packaged(
    tmp_path: Path, engine: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_check(*_: Any) -> Evidence:
        raise VerificationFailed("the engine does not answer like its model")

    monkeypatch.setattr(evidence, "run_check", run_check)
    write_evidence(engine, engine, sha256_bytes(b"other weights"))
    with pytest.raises(VerificationFailed):
        run(tmp_path, {"engine": engine, "weights": weights})
    assert not (tmp_path / "output" / "Dockerfile").exists()


def test_a_base_that_moves_is_refused_before_anything_is_checked(
    tmp_path: Path, engine: Path, weights: Path, checks: list[str]
) -> None:
    with pytest.raises(UsageProblem, match="not pinned"):
        run(tmp_path, {"engine": engine, "weights": weights}, PARAMS.model_copy(update={"base": "python:latest"}))
    assert checks == []


def test_the_benchmark_travels_with_the_engine_and_its_figures_stand_in_the_readme(
    tmp_path: Path, engine: Path, weights: Path, benchmark: Path, checks: list[str]
) -> None:
    output, _ = run(tmp_path, {"engine": engine, "weights": weights, "benchmark": benchmark})
    for name in ("benchmark.json", "benchmark.csv"):
        assert (output / "benchmark" / name).read_bytes() == (benchmark / name).read_bytes()
        assert f"  benchmark/{name}\n" in (output / "SHA256SUMS").read_text()
    readme = (output / "README.md").read_text()
    assert "| `chat` | 64 + 32 | 4 | 1234 | 10.5 / 10.6 |  | 512 |" in readme
    assert r"On `A CPU \| of <b>mine</b>` with 2 threads" in readme
    assert "Note: fp8 is simulated." in readme


def test_only_the_keys_of_what_is_inside_are_named(
    tmp_path: Path, engine: Path, weights: Path, benchmark: Path, checks: list[str]
) -> None:
    output, _ = run(tmp_path, {"engine": engine, "weights": weights, "benchmark": benchmark})
    named = json.loads((output / "deployment.json").read_bytes())["keys"]
    assert named == {name: KEYS[name] for name in ("engine", "weights", "benchmark")}


def test_without_a_benchmark_nothing_pretends_that_there_was_one(
    tmp_path: Path, engine: Path, weights: Path, checks: list[str]
) -> None:
    output, _ = run(tmp_path, {"engine": engine, "weights": weights})
    assert not (output / "benchmark").exists()
    assert "measured" not in (output / "README.md").read_text()


def test_the_readme_says_what_quantization_and_compiling_cost(
    tmp_path: Path, engine: Path, weights: Path, checks: list[str]
) -> None:
    output, _ = run(tmp_path, {"engine": engine, "weights": weights})
    assert (
        "| perplexity | 20.010 through the compiled programs, 20.000 as quantized" in (output / "README.md").read_text()
    )
