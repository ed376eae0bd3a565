"""The engine's figures among Triton's own metrics, under the names that `trtx serve` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtx.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    text: str
    read: Callable[[Engine], float]
    counts: bool = True
    kind: str | None = None


FIGURES = (
    _Figure("trtx_requests_running", "Requests that hold blocks.", lambda engine: engine.load_now.running, False),
    _Figure("trtx_requests_waiting", "Requests that wait to start.", lambda engine: engine.load_now.waiting, False),
    _Figure("trtx_kv_blocks", "KV-cache blocks there are.", lambda engine: engine.load_now.kv_blocks, False),
    _Figure("trtx_kv_blocks_used", "KV-cache blocks in use.", lambda engine: engine.load_now.kv_blocks_used, False),
    _Figure(
        "trtx_steps_total", "Steps of the engine, by kind.", lambda engine: engine.stats.prefill_steps, True, "prefill"
    ),
    _Figure(
        "trtx_steps_total", "Steps of the engine, by kind.", lambda engine: engine.stats.decode_steps, True, "decode"
    ),
    _Figure("trtx_prompt_tokens_total", "Prompt tokens computed.", lambda engine: engine.stats.prompt_tokens),
    _Figure(
        "trtx_cached_prompt_tokens_total",
        "Prompt tokens found in the KV cache instead.",
        lambda engine: engine.stats.cached_tokens,
    ),
    _Figure("trtx_output_tokens_total", "Tokens generated.", lambda engine: engine.stats.output_tokens),
    _Figure(
        "trtx_preemptions_total",
        "Times that a running request gave its blocks to another.",
        lambda engine: engine.stats.paused,
    ),
)


class TritonMetrics:
    """Metrics of one model; `update` copies the engine's figures into the server's."""

    def __init__(self, engine: Engine, backend: Any, labels: Mapping[str, str]) -> None:
        self._engine = engine
        # The server forgets a family whose object is gone.
        self._families: dict[str, Any] = {}
        self._metrics: list[tuple[_Figure, Any]] = []
        self._seen = [0.0] * len(FIGURES)
        kinds = backend.MetricFamily
        for figure in FIGURES:
            if figure.name not in self._families:
                kind = kinds.COUNTER if figure.counts else kinds.GAUGE
                self._families[figure.name] = kinds(figure.name, figure.text, kind)
            own = {**labels, **({} if figure.kind is None else {"kind": figure.kind})}
            self._metrics.append((figure, self._families[figure.name].Metric(labels=own)))

    def update(self) -> None:
        for index, (figure, metric) in enumerate(self._metrics):
            value = float(figure.read(self._engine))
            if figure.counts:
                metric.increment(value - self._seen[index])
                self._seen[index] = value
            else:
                metric.set(value)
