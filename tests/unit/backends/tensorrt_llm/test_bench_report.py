"""What trtllm-bench says, in its report and in the tables that each generation of it printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trtx.backends.tensorrt_llm.bench_dataset import special_tokens, write_dataset
from trtx.backends.tensorrt_llm.bench_report import RunFigures, make_level, read_log, read_report
from trtx.backends.tensorrt_llm.serve_metrics import read_iterations, read_prometheus
from trtx.errors import StepFailed

# As NVIDIA's documents of each generation show it.
PRINTED_0_12 = """
TensorRT-LLM Version:   0.12.0
KV Memory Percentage:   99.0%
Issue Rate (req/sec):   3.680275266452667e+18
===========================================================
= STATISTICS
===========================================================
Number of requests:             3000
Average Input Length (tokens):  128.0
Token Throughput (tokens/sec):  23405.927228471104
Request Throughput (req/sec):   182.8588064724305
Total Latency (seconds):        16.406100739
"""
PRINTED_0_16 = """
TensorRT-LLM Version:\t0.16.0
Number of requests:\t\t1000
Token Throughput (tokens/sec):\t1585.7480
Request Throughput (req/sec):\t0.7743
Total Latency (ms):\t\t1291504.1051
"""
PRINTED_LATER = """
Request Throughput (req/sec):                     43.2089
Total Output Throughput (tokens/sec):             5530.7382
Per GPU Output Throughput (tokens/sec/gpu):       5530.7382
Total Token Throughput (tokens/sec):              94022.5497
Total Latency (ms):                               115716.9214
Average time-to-first-token [TTFT] (ms):          52667.0339
[TPOT] AVERAGE: 182.9639
[TPOT] P50    : 204.0463
[TPOT] P90    : 206.3863
[TPOT] P95    : 206.5064
[TPOT] P99    : 206.5821
[TTFT] P50    : 52269.7072
[TTFT] P90    : 96583.7187
[TTFT] P95    : 101978.4566
[TTFT] P99    : 106563.4497
[Latency] P50    : 78509.2102
"""


def test_the_oldest_tables_have_throughput_and_no_latencies() -> None:
    figures = read_log(PRINTED_0_12)
    assert (figures.requests, figures.version) == (3000, "0.12.0")
    assert (figures.requests_per_s, figures.output_tokens_per_s) == (182.8588064724305, 23405.927228471104)
    assert figures.first_token_s is None


def test_the_tables_of_0_16_are_read() -> None:
    figures = read_log(PRINTED_0_16)
    assert (figures.requests, figures.output_tokens_per_s, figures.requests_per_s) == (1000, 1585.748, 0.7743)


def test_later_tables_have_percentiles_in_milliseconds() -> None:
    figures = read_log(PRINTED_LATER)
    assert figures.requests == 5000  # 43.2089 a second for 115.7 s.
    assert figures.output_tokens_per_s == 5530.7382
    assert figures.first_token_s == {
        "p50": pytest.approx(52.2697072),
        "p95": pytest.approx(101.9784566),
        "p99": pytest.approx(106.5634497),
    }
    assert figures.per_token_s is not None
    assert figures.per_token_s["p50"] == pytest.approx(0.2040463)


def test_a_log_without_tables_says_what_that_often_means() -> None:
    with pytest.raises(StepFailed) as failed:
        read_log("[TRT-LLM] [I] Loading engine\n")
    assert "memory_fraction" in failed.value.fix


@pytest.mark.parametrize("content", ["", "{}", '{"performance": {}}', '{"performance": {}, "request_info": 3}'])
def test_a_report_that_is_none_fails_the_step(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(StepFailed, match="report of trtllm-bench cannot be read"):
        read_report(tmp_path / "report.json")


def test_a_report_without_streaming_has_no_latencies(tmp_path: Path) -> None:
    report: dict[str, Any] = {
        "engine": {"version": "1.2.1"},
        "machine": {"name": "NVIDIA H100"},
        "request_info": {"num_requests": 10},
        "performance": {"request_throughput_req_s": 2.0, "system_output_throughput_tok_s": 64.0},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    figures = read_report(tmp_path / "report.json")
    assert figures == RunFigures(10, 2.0, 64.0, None, None, "NVIDIA H100", "1.2.1")


def make(*runs: RunFigures, **changes: Any) -> Any:
    fields = {"workload": "chat", "input_tokens": 8, "output_tokens": 4, "concurrency": 2, "asked": 10}
    return make_level(**{**fields, **changes}, runs=runs)


LATENCY = {"p50": 0.1, "p95": 0.2, "p99": 0.3}


def test_repeats_become_one_row_with_their_spread() -> None:
    row = make(RunFigures(10, 2.0, 8.0, LATENCY, LATENCY), RunFigures(9, 4.0, 16.0, LATENCY, LATENCY))
    assert (row.output_tokens_per_s.mean, row.output_tokens_per_s.repeats) == (12.0, (8.0, 16.0))
    assert (row.requests, row.failed) == (20, 1)
    assert row.time_to_first_token_s.p99.mean == 0.3
    assert row.peak_rss_bytes is None


def test_latencies_that_one_repeat_lacks_are_not_made_up() -> None:
    assert (
        make(RunFigures(10, 2.0, 8.0, LATENCY, None), RunFigures(10, 2.0, 8.0, None, None)).time_to_first_token_s
        is None
    )
    assert make(RunFigures(10, 2.0, 8.0, LATENCY, LATENCY), output_tokens=1).inter_token_latency_s is None


def test_a_run_without_tokens_fails() -> None:
    with pytest.raises(StepFailed, match="produced no tokens"):
        make(RunFigures(10, 2.0, 0.0, None, None))


def test_a_dataset_is_the_same_for_the_same_seed_and_has_no_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 0}, {"id": 3}]}))
    special = special_tokens(tmp_path)
    assert special == {0, 3}
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        write_dataset(
            tmp_path / name, vocab_size=6, special=special, input_tokens=50, output_tokens=9, count=3, seed=seed
        )
    first = (tmp_path / "a").read_text()
    assert first == (tmp_path / "b").read_text() != (tmp_path / "c").read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["task_id"] for row in rows] == [0, 1, 2]
    assert {len(row["logits"]) for row in rows} == {50}
    assert {token for row in rows for token in row["logits"]} == {1, 2, 4, 5}
    assert {row["output_tokens"] for row in rows} == {9}


def test_a_folder_without_a_fast_tokenizer_has_no_special_tokens(tmp_path: Path) -> None:
    assert special_tokens(tmp_path) == frozenset()


@pytest.mark.parametrize("body", ["", "{}", '[{"iterLatencyMS": 1}]', "[3]"])
def test_an_answer_that_is_no_list_of_steps_is_refused(body: str) -> None:
    with pytest.raises(StepFailed, match="/metrics of trtllm-serve cannot be read"):
        read_iterations(body)


def test_a_page_without_the_servers_metrics_says_how_to_get_them() -> None:
    with pytest.raises(StepFailed) as failed:
        read_prometheus("python_info 1\n")
    assert "return_perf_metrics" in failed.value.fix
