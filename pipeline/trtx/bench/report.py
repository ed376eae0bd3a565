"""benchmark.json and benchmark.csv: what was measured, on what, and how. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trtx.bench.stats import DEFINITIONS, Percentiles, Spread
from trtx.files import write_json, write_text
from trtx.hardware.host import Host
from trtx.models.config import DType
from trtx.models.formats import QuantFormat
from trtx.runtime.card import CompiledFor, EngineCard, Limits

REPORT_NAME = "benchmark.json"
TABLE_NAME = "benchmark.csv"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class MachineFacts(_Part):
    """Where it was measured. `num_threads` are torch's threads for one operation, None where it does not compute.

    `software` are versions of what measured and was measured, by distribution.
    """

    cpu_model: str
    num_cpus: int
    memory_bytes: int
    isa: str | None
    num_threads: int | None
    torch: str | None
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    software: dict[str, str] = {}

    @classmethod
    def of(cls, host: Host, *, num_threads: int, torch: str) -> MachineFacts:
        return cls(
            cpu_model=host.cpu_model,
            num_cpus=host.num_cpus,
            memory_bytes=host.memory_bytes,
            isa=host.isa.name if host.isa else None,
            num_threads=num_threads,
            torch=torch,
        )


class EngineFacts(_Part):
    """What was measured, from the engine card.

    `kv_blocks` are the blocks that requests could use, None where the runtime does not say.
    """

    backend: str = "inductor"
    quantization: QuantFormat
    dtype: DType
    limits: Limits
    compiled_for: CompiledFor
    kv_blocks: int | None

    @classmethod
    def of(cls, card: EngineCard, *, kv_blocks: int) -> EngineFacts:
        return cls(
            quantization=card.quantization,
            dtype=card.dtype,
            limits=card.limits,
            compiled_for=card.compiled_for,
            kv_blocks=kv_blocks,
        )


class LevelResult(_Part):
    """One workload at one concurrency. Rates are per second of a repeat; latencies are in seconds.

    `requests` and `failed` count over all repeats. `peak_rss_bytes` is the most memory the process held in them, with
    Python, torch, weights and KV cache. None stands for what the tool that measured does not say.
    """

    workload: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    failed: int
    output_tokens_per_s: Spread
    requests_per_s: Spread
    time_to_first_token_s: Percentiles | None
    inter_token_latency_s: Percentiles | None
    peak_rss_bytes: int | None


class BenchmarkReport(_Part):
    """Content of benchmark.json."""

    schema_: Literal["trtx.benchmark/v1"] = Field(default="trtx.benchmark/v1", alias="schema")
    machine: MachineFacts
    engine: EngineFacts
    notes: tuple[str, ...]
    definitions: str = DEFINITIONS
    repeats: int
    warmup_requests: int
    seed: int
    results: tuple[LevelResult, ...]


def describe(result: LevelResult) -> str:
    """One line about a level for a log."""
    first, between = result.time_to_first_token_s, result.inter_token_latency_s
    return (
        f"{result.workload} at {result.concurrency}: {result.output_tokens_per_s.mean:.0f} tokens/s"
        f" (stdev {result.output_tokens_per_s.stdev:.0f})"
        + (f", first token p50 {first.p50.mean * 1e3:.1f} ms" if first else "")
        + (f", next p50 {between.p50.mean * 1e3:.2f} ms" if between else "")
    )


def summarize(report: BenchmarkReport) -> Mapping[str, float]:
    """Mean output tokens per second of every level, by `workload@concurrency`."""
    return {f"{r.workload}@{r.concurrency}": round(r.output_tokens_per_s.mean, 2) for r in report.results}


def write_report(folder: Path, report: BenchmarkReport) -> None:
    """Write both files."""
    write_json(folder / REPORT_NAME, report.model_dump(mode="json", by_alias=True))
    write_text(folder / TABLE_NAME, format_table(report))


def format_table(report: BenchmarkReport) -> str:
    """One line per workload and concurrency; means over the repeats, and the spread of the throughput."""
    stream = io.StringIO()
    rows = [_make_row(result) for result in report.results]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _make_row(result: LevelResult) -> dict[str, str | int]:
    def seconds(value: float) -> str:
        return f"{value:.6f}"

    between = result.inter_token_latency_s
    latencies = {"time_to_first_token": result.time_to_first_token_s, "inter_token_latency": between}
    row: dict[str, str | int] = {
        "workload": result.workload,
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "concurrency": result.concurrency,
        "requests": result.requests,
        "failed": result.failed,
        "output_tokens_per_s": f"{result.output_tokens_per_s.mean:.2f}",
        "output_tokens_per_s_stdev": f"{result.output_tokens_per_s.stdev:.2f}",
        "requests_per_s": f"{result.requests_per_s.mean:.4f}",
    }
    for name, spread in latencies.items():
        for level in ("p50", "p95", "p99"):
            row[f"{name}_{level}_s"] = seconds(getattr(spread, level).mean) if spread else ""
    return row | {"peak_rss_bytes": "" if result.peak_rss_bytes is None else result.peak_rss_bytes}
