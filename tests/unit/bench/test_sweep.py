from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.engines import FakePrograms, make_card, make_engine, make_tokenizer

from trtx.bench.report import BenchmarkReport, summarize, write_report
from trtx.bench.sweep import Level, Method, make_notes, run_sweep
from trtx.errors import StepFailed
from trtx.models.formats import QuantFormat
from trtx.runtime.engine import Engine

METHOD = Method(repeats=3, warmup_requests=2, seed=1)
LEVELS = [Level("chat", 8, 5, concurrency, requests=6) for concurrency in (1, 4)]


def sweep(engine: Engine, levels: list[Level] = LEVELS, method: Method = METHOD) -> BenchmarkReport:
    return run_sweep(engine, levels, method, progress=lambda done, total, unit: None, say=lambda text: None)


def test_a_report_has_every_level_with_all_its_repeats() -> None:
    report = sweep(make_engine())
    assert [(r.workload, r.concurrency, r.requests, r.failed) for r in report.results] == [
        ("chat", 1, 18, 0),
        ("chat", 4, 18, 0),
    ]
    for result in report.results:
        assert len(result.output_tokens_per_s.repeats) == 3
        assert result.output_tokens_per_s.mean == pytest.approx(result.requests_per_s.mean * 5)
        assert 0 < result.time_to_first_token_s.p50.mean <= result.time_to_first_token_s.p99.mean
        assert result.inter_token_latency_s is not None
        assert result.inter_token_latency_s.p50.mean > 0
        assert result.peak_rss_bytes > 1 << 20
    assert set(summarize(report)) == {"chat@1", "chat@4"}


def test_the_report_states_machine_engine_and_definitions() -> None:
    report = sweep(make_engine())
    assert report.machine.num_cpus >= 1
    assert report.machine.num_threads >= 1
    assert report.engine.kv_blocks == 64
    assert "Hyndman" in report.definitions
    assert (report.repeats, report.warmup_requests, report.seed) == (3, 2, 1)


def test_both_files_hold_the_same_figures(tmp_path: Path) -> None:
    report = sweep(make_engine())
    write_report(tmp_path, report)
    read = json.loads((tmp_path / "benchmark.json").read_text())
    assert read["schema"] == "trtx.benchmark/v1"
    assert BenchmarkReport.model_validate(read) == report
    rows = list(csv.DictReader((tmp_path / "benchmark.csv").read_text().splitlines()))
    assert [row["concurrency"] for row in rows] == ["1", "4"]
    assert float(rows[0]["output_tokens_per_s"]) == pytest.approx(report.results[0].output_tokens_per_s.mean, abs=0.01)
    assert all(value for row in rows for value in row.values())


def test_a_single_output_token_has_no_latency_between_tokens(tmp_path: Path) -> None:
    report = sweep(make_engine(), [Level("prefill", 8, 1, 2, requests=3)])
    assert report.results[0].inter_token_latency_s is None
    write_report(tmp_path, report)
    (row,) = csv.DictReader((tmp_path / "benchmark.csv").read_text().splitlines())
    assert row["inter_token_latency_p50_s"] == ""


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int, str]] = []
    run_sweep(make_engine(), LEVELS, METHOD, progress=lambda *step: seen.append(step), say=lambda text: None)
    assert seen == [(done, 40, "requests") for done in range(1, 41)]


def test_simulated_arithmetic_is_named_in_the_report() -> None:
    card = make_card()
    simulated = card.model_copy(
        update={
            "compiled_for": card.compiled_for.model_copy(update={"simulated": True}),
            "quantization": card.quantization.model_copy(update={"algorithm": "fp8"}),
        }
    )
    report = sweep(Engine(FakePrograms(simulated), make_tokenizer()))
    assert report.notes[0].startswith("fp8 is simulated")
    assert sweep(make_engine()).notes == ()


def test_weights_that_are_stored_dequantized_are_named_in_the_report() -> None:
    card = make_card()
    notes = make_notes(card.model_copy(update={"quantization": QuantFormat(algorithm="nvfp4"), "dtype": "bfloat16"}))
    assert notes == (
        "weights of nvfp4 are stored dequantized, in bfloat16: they take the memory and the time of bfloat16 weights",
    )


def test_a_workload_beyond_the_limits_fails_the_step() -> None:
    with pytest.raises(StepFailed, match="refuses workload chat at concurrency 1") as failed:
        sweep(make_engine(), [Level("chat", 60, 60, 1, requests=1)])
    assert "takes at most 64" in failed.value.why


def test_a_program_that_breaks_fails_the_step() -> None:
    programs = FakePrograms(make_card())
    programs.fail_with = RuntimeError("index 7 is out of bounds\nat kernel 3")
    with pytest.raises(StepFailed, match="the engine failed in workload chat") as failed:
        sweep(Engine(programs, make_tokenizer()))
    assert failed.value.why == "index 7 is out of bounds"


def test_a_run_without_tokens_fails_the_step() -> None:
    with pytest.raises(StepFailed, match="produced no tokens"):
        sweep(make_engine(), [Level("chat", 8, 5, 1, requests=0)])


def test_requests_that_end_early_fail_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    made = engine.make_request

    def stops_at_any_token(prompt, params):  # type: ignore[no-untyped-def]
        request = made(prompt, params)
        request.stop_ids = frozenset(range(258))
        return request

    monkeypatch.setattr(engine, "make_request", stops_at_any_token)
    with pytest.raises(StepFailed, match="2 of 2 requests failed") as failed:
        sweep(engine)
    assert "ended by stop after 1 of 5 tokens" in failed.value.why
