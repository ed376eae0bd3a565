"""What trtllm-bench measured: its --report_json, or for releases without one the tables that it prints.

    0.12 to 0.14  printed: requests, token and request throughput, total latency in seconds; no latency of requests
    0.15, 0.16    the same in milliseconds
    later         printed and in the report: percentiles of the time to first token and per output token, too

Fields: tensorrt_llm/bench/dataclasses/reporting.py of 1.3.0rc3. Printed tables: NVIDIA's perf-benchmarking documents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.bench.report import LevelResult
from trtx.bench.stats import Percentiles, Spread
from trtx.errors import StepFailed
from trtx.files import read_json

PERCENTILES = ("p50", "p95", "p99")
DEFINITIONS = (
    "percentiles are those of trtllm-bench, of one repeat; the time between tokens is its time per output token of"
    " each request; mean, stdev (n - 1), min and max are over the repeats."
)
# As "[TTFT] P50    : 52269.7072".
BREAKDOWN = re.compile(r"\[(TTFT|TPOT)\]\s+(P50|P95|P99)\s*:\s*([0-9.eE+-]+)")
# As "Request Throughput (req/sec):   182.85".
LINE = re.compile(r"^\s*([A-Z][^:\n]*?)\s*:\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class RunFigures:
    """One run of trtllm-bench. Latencies are seconds by percentile; None for what the release does not say."""

    requests: int
    requests_per_s: float
    output_tokens_per_s: float
    first_token_s: Mapping[str, float] | None
    per_token_s: Mapping[str, float] | None
    gpu: str | None = None
    version: str | None = None


def read_report(path: Path) -> RunFigures:
    """The figures of --report_json. Raises StepFailed for a file that is no report."""
    try:
        data = read_json(path)
        performance, streaming = data["performance"], data.get("streaming_metrics") or {}
        return RunFigures(
            requests=int(data["request_info"]["num_requests"]),
            requests_per_s=float(performance["request_throughput_req_s"]),
            output_tokens_per_s=float(performance["system_output_throughput_tok_s"]),
            first_token_s=_seconds(streaming.get("ttft_percentiles")),
            per_token_s=_seconds(streaming.get("tpot_percentiles")),
            gpu=(data.get("machine") or {}).get("name"),
            version=(data.get("engine") or {}).get("version"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepFailed(
            "the report of trtllm-bench cannot be read",
            why=f"{path.name}: {type(error).__name__}: {error}",
            fix="read the step's log: trtllm-bench may have ended early",
        ) from error


def read_log(text: str) -> RunFigures:
    """The figures that trtllm-bench printed. Raises StepFailed when there are none."""
    found = {name: float(value) for name, value in LINE.findall(text)}
    # Before 0.17 the one throughput in tokens counts output tokens.
    tokens = found.get("Total Output Throughput (tokens/sec)", found.get("Token Throughput (tokens/sec)"))
    requests, rate = found.get("Number of requests"), found.get("Request Throughput (req/sec)")
    if tokens is None or rate is None:
        raise StepFailed(
            "trtllm-bench printed no figures",
            why="its log has no table with Request Throughput",
            fix="most often the GPU had too little memory: lower engine.kv_cache.memory_fraction or the limits",
        )
    if requests is None:
        seconds = found.get("Total Latency (ms)", 0.0) / 1e3
        requests = round(rate * seconds)
    latencies: dict[str, dict[str, float]] = {}
    for kind, percent, value in BREAKDOWN.findall(text):
        latencies.setdefault(kind, {})[percent.lower()] = float(value)
    version = re.search(r"TensorRT-LLM Version\s*:\s*(\S+)", text)
    return RunFigures(
        requests=int(requests),
        requests_per_s=rate,
        output_tokens_per_s=tokens,
        first_token_s=_seconds(latencies.get("TTFT")),
        per_token_s=_seconds(latencies.get("TPOT")),
        version=version[1] if version else None,
    )


def make_level(
    *, workload: str, input_tokens: int, output_tokens: int, concurrency: int, asked: int, runs: Sequence[RunFigures]
) -> LevelResult:
    """The result of one workload at one concurrency; `asked` requests were sent in each run.

    Raises StepFailed when a run made no tokens.
    """
    if any(run.output_tokens_per_s <= 0 for run in runs):
        raise StepFailed(f"workload {workload} produced no tokens", fix="read the step's log")
    done = [min(run.requests, asked) for run in runs]
    return LevelResult(
        workload=workload,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=concurrency,
        requests=asked * len(runs),
        failed=asked * len(runs) - sum(done),
        output_tokens_per_s=Spread.of([run.output_tokens_per_s for run in runs]),
        requests_per_s=Spread.of([run.requests_per_s for run in runs]),
        time_to_first_token_s=_over_runs([run.first_token_s for run in runs]),
        inter_token_latency_s=_over_runs([run.per_token_s for run in runs]) if output_tokens > 1 else None,
        peak_rss_bytes=None,
    )


def _over_runs(runs: Sequence[Mapping[str, float] | None]) -> Percentiles | None:
    known = [run for run in runs if run is not None]
    if len(known) < len(runs):
        return None
    return Percentiles(**{name: Spread.of([run[name] for run in known]) for name in PERCENTILES})


def _seconds(milliseconds: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    if not milliseconds or any(name not in milliseconds for name in PERCENTILES):
        return None
    return {name: float(milliseconds[name]) / 1e3 for name in PERCENTILES}
