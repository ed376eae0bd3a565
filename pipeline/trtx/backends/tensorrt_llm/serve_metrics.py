"""What a running trtllm-serve says of itself: /metrics, which is JSON, and /prometheus/metrics.

Routes: tensorrt_llm/serve/openai_server.py:255-293 of 1.3.0rc3; the second is there with return_perf_metrics only.
Names: of the JSON's keys those of IterationStats, of Prometheus those in metrics/collector.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.errors import StepFailed

STATS_ROUTE = "/metrics"
PROMETHEUS_ROUTE = "/prometheus/metrics"
PREFIX = "trtllm_"
# Histograms of latencies, in seconds.
LATENCIES = (
    "e2e_request_latency_seconds",
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
    "request_queue_time_seconds",
)
SUCCESSES = "request_success_total"
SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)")
LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Iteration:
    """One step of the server. None stands for what its release does not say."""

    number: int
    latency_ms: float | None
    active: int | None
    queued: int | None
    kv_blocks: int | None
    kv_blocks_used: int | None
    kv_hit_rate: float | None
    gpu_memory_bytes: int | None


@dataclass(frozen=True)
class Latency:
    """A histogram: how many, their sum in seconds, and cumulative counts by upper bound in seconds."""

    count: int
    sum_s: float
    buckets: tuple[tuple[float, int], ...]

    @property
    def mean_s(self) -> float | None:
        return self.sum_s / self.count if self.count else None

    def at_most(self, percent: float) -> float | None:
        """The least bucket bound that `percent` % of the values do not exceed; None when there is none."""
        for bound, count in self.buckets:
            if self.count and count * 100 >= percent * self.count:
                return None if math.isinf(bound) else bound
        return None


@dataclass(frozen=True)
class ServeMetrics:
    """What /prometheus/metrics says: requests that succeeded, and latencies by name without prefix."""

    succeeded: int
    latencies: Mapping[str, Latency]


def read_iterations(body: str) -> tuple[Iteration, ...]:
    """The steps since the last question, oldest first: the server forgets what it has told.

    Raises StepFailed for what is no such answer.
    """
    try:
        rows = json.loads(body)
        if not isinstance(rows, list):
            raise TypeError("it is no list")
        return tuple(_read_iteration(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepFailed(
            f"{STATS_ROUTE} of trtllm-serve cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error


def _read_iteration(row: Mapping[str, Any]) -> Iteration:
    cache = row.get("kvCacheStats") or {}
    return Iteration(
        number=int(row["iter"]),
        latency_ms=row.get("iterLatencyMS"),
        active=row.get("numActiveRequests"),
        queued=row.get("numQueuedRequests"),
        kv_blocks=cache.get("maxNumBlocks"),
        kv_blocks_used=cache.get("usedNumBlocks"),
        kv_hit_rate=cache.get("cacheHitRate"),
        gpu_memory_bytes=row.get("gpuMemUsage"),
    )


def read_prometheus(text: str) -> ServeMetrics:
    """The metrics of trtllm-serve, summed over models and engines; others on the same page are left out.

    Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Raises StepFailed when none is there.
    """
    counts: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for name, labels, value in _samples(text):
        counts[name] = counts.get(name, 0.0) + value
        if name.endswith("_bucket"):
            bound = float(labels["le"].replace("+Inf", "inf"))
            row = buckets.setdefault(name.removesuffix("_bucket"), {})
            row[bound] = row.get(bound, 0.0) + value
    if not counts:
        raise StepFailed(
            f"{PROMETHEUS_ROUTE} of trtllm-serve has no metric that begins with {PREFIX}",
            why="the server has them with return_perf_metrics: true in its options file only",
            fix="set engine.llm_options.return_perf_metrics",
        )
    latencies = {
        name: Latency(
            int(counts.get(f"{name}_count", 0)),
            counts.get(f"{name}_sum", 0.0),
            tuple((bound, int(count)) for bound, count in sorted(buckets.get(name, {}).items())),
        )
        for name in LATENCIES
        if f"{name}_count" in counts
    }
    return ServeMetrics(int(counts.get(SUCCESSES, 0)), latencies)


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        match = None if line.startswith("#") else SAMPLE.match(line)
        if match and match["name"].startswith(PREFIX):
            yield match["name"].removeprefix(PREFIX), dict(LABEL.findall(match["labels"] or "")), float(match["value"])
