"""Figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trtx.runtime.engine import Engine
from trtx.runtime.request import Output, Request

FIRST_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN_TOKENS_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ServerMetrics:
    """What /metrics shows. `observe` is called with every step's outputs, `refused` counts by the API."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineFigures(engine))
        self._last_s: WeakKeyDictionary[Request, float] = WeakKeyDictionary()
        self._first_token = Histogram(
            "trtx_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._between_tokens = Histogram(
            "trtx_inter_token_latency_seconds",
            "From one token of a request to its next.",
            buckets=BETWEEN_TOKENS_BUCKETS_S,
            registry=self._registry,
        )
        self._queue = Histogram(
            "trtx_queue_seconds",
            "From the arrival of a request to the step that starts it.",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._request = Histogram(
            "trtx_request_seconds",
            "From the arrival of a request to its last token.",
            buckets=REQUEST_BUCKETS_S,
            registry=self._registry,
        )
        self.refused = Counter(
            "trtx_requests_refused", "Requests answered with an error before they were queued.", registry=self._registry
        )

    def observe(self, outputs: Sequence[Output]) -> None:
        """Record the times of one step's tokens."""
        for output in outputs:
            last_s = self._last_s.get(output.request)
            arrival_s, started_s = output.request.arrival_s, output.request.started_s
            if last_s is None:
                self._first_token.observe(output.time_s - arrival_s)
                self._queue.observe((output.time_s if started_s is None else started_s) - arrival_s)
            else:
                self._between_tokens.observe(output.time_s - last_s)
            if output.finish_reason is None:
                self._last_s[output.request] = output.time_s
            else:
                self._request.observe(output.time_s - arrival_s)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    """Reads the engine's own counters when asked, so that a step does no work for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats, load = self._engine.stats, self._engine.load_now
        ended = CounterMetricFamily("trtx_requests", "Requests that ended, by reason.", labels=["reason"])
        for reason, number in stats.finished.items():
            ended.add_metric([reason], number)
        yield ended
        steps = CounterMetricFamily("trtx_steps", "Steps of the engine, by kind.", labels=["kind"])
        steps.add_metric(["prefill"], stats.prefill_steps)
        steps.add_metric(["decode"], stats.decode_steps)
        yield steps
        yield CounterMetricFamily("trtx_prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
        yield CounterMetricFamily(
            "trtx_cached_prompt_tokens", "Prompt tokens found in the KV cache instead.", stats.cached_tokens
        )
        yield CounterMetricFamily(
            "trtx_preemptions", "Times that a running request gave its blocks to another.", stats.paused
        )
        last = stats.steps[-1].batch_size if stats.steps else 0
        yield GaugeMetricFamily("trtx_batch_size", "Requests in the last step.", last)
        yield CounterMetricFamily("trtx_output_tokens", "Tokens generated.", stats.output_tokens)
        yield GaugeMetricFamily("trtx_requests_running", "Requests that hold blocks.", load.running)
        yield GaugeMetricFamily("trtx_requests_waiting", "Requests that wait to start.", load.waiting)
        yield GaugeMetricFamily("trtx_kv_blocks_used", "KV-cache blocks in use.", load.kv_blocks_used)
        yield GaugeMetricFamily("trtx_kv_blocks", "KV-cache blocks there are.", load.kv_blocks)
        usage = load.kv_blocks_used / load.kv_blocks
        yield GaugeMetricFamily("trtx_kv_cache_usage_ratio", "Part of the KV-cache blocks in use.", usage)
