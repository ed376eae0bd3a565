"""A sweep over workloads and concurrency levels on one engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch

from trtx.bench.load import LoadResult, make_prompts, run_load
from trtx.bench.memory import peak_rss_bytes, reset_peak
from trtx.bench.report import BenchmarkReport, EngineFacts, LevelResult, MachineFacts, describe
from trtx.bench.stats import Percentiles, Spread
from trtx.errors import StepFailed
from trtx.hardware.host import read_host
from trtx.models.formats import ALGORITHMS
from trtx.runtime.card import EngineCard
from trtx.runtime.engine import Engine
from trtx.runtime.request import RequestRefused

SIMULATED = (
    "{algorithm} is simulated on this device: the programs round as the format does and compute in a wider one,"
    " so these times say nothing about hardware that has it"
)

DEQUANTIZED = (
    "weights of {algorithm} are stored dequantized, in {dtype}: they take the memory and the time of {dtype} weights"
)

# done, total, unit
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Level:
    """One workload at one concurrency; `requests` are sent in every repeat."""

    workload: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int


@dataclass(frozen=True)
class Method:
    """How often to measure, and from which numbers the prompts come."""

    repeats: int
    warmup_requests: int
    seed: int


def run_sweep(
    engine: Engine, levels: list[Level], method: Method, *, progress: Progress, say: Callable[[str], None]
) -> BenchmarkReport:
    """Measure every level after a warm-up of its own.

    Raises StepFailed when a level cannot run on this engine, a request fails or no token comes.
    """
    total = sum(method.warmup_requests + method.repeats * level.requests for level in levels)
    done = 0

    def on_end() -> None:
        nonlocal done
        done += 1
        progress(done, total, "requests")

    results = []
    for level in levels:
        results.append(_measure(engine, level, method, on_end))
        say(describe(results[-1]))
    card = engine.card
    return BenchmarkReport(
        machine=MachineFacts.of(
            read_host(gpus=False), num_threads=torch.get_num_threads(), torch=str(torch.__version__)
        ),
        engine=EngineFacts.of(card, kv_blocks=engine.load_now.kv_blocks),
        notes=make_notes(card),
        repeats=method.repeats,
        warmup_requests=method.warmup_requests,
        seed=method.seed,
        results=tuple(results),
    )


def make_notes(card: EngineCard) -> tuple[str, ...]:
    """What a reader of an engine's figures has to know about its number format."""
    algorithm = card.quantization.algorithm
    notes = [SIMULATED.format(algorithm=algorithm)] if card.compiled_for.simulated else []
    if ALGORITHMS[algorithm].dequantized:
        notes.append(DEQUANTIZED.format(algorithm=algorithm, dtype=card.dtype))
    return tuple(notes)


def _measure(engine: Engine, level: Level, method: Method, on_end: Callable[[], None]) -> LevelResult:
    name = f"{method.seed}/{level.workload}/{level.concurrency}"
    prompts = make_prompts(engine, input_tokens=level.input_tokens, seed=name)
    reset_peak()
    _run(engine, level, list(islice(prompts, method.warmup_requests)), on_end)
    repeats = [_run(engine, level, list(islice(prompts, level.requests)), on_end) for _ in range(method.repeats)]
    if not all(repeat.output_tokens for repeat in repeats):
        raise StepFailed(f"workload {level.workload} produced no tokens", fix="give it at least one request")
    gaps = [[gap for timing in repeat.timings for gap in timing.gaps_s] for repeat in repeats]
    return LevelResult(
        workload=level.workload,
        input_tokens=level.input_tokens,
        output_tokens=level.output_tokens,
        concurrency=level.concurrency,
        requests=sum(len(repeat.timings) for repeat in repeats),
        failed=sum(len(repeat.failures) for repeat in repeats),
        output_tokens_per_s=Spread.of([repeat.output_tokens / repeat.elapsed_s for repeat in repeats]),
        requests_per_s=Spread.of([len(repeat.timings) / repeat.elapsed_s for repeat in repeats]),
        time_to_first_token_s=Percentiles.of([[t.first_token_s for t in repeat.timings] for repeat in repeats]),
        inter_token_latency_s=Percentiles.of(gaps) if level.output_tokens > 1 else None,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _run(engine: Engine, level: Level, prompts: list[list[int]], on_end: Callable[[], None]) -> LoadResult:
    where = f"workload {level.workload} at concurrency {level.concurrency}"
    try:
        result = run_load(
            engine, prompts, output_tokens=level.output_tokens, concurrency=level.concurrency, on_end=on_end
        )
    except RequestRefused as refused:
        raise StepFailed(f"the engine refuses {where}", why=refused.what, fix="shorten the workload") from refused
    except RuntimeError as broken:
        raise StepFailed(
            f"the engine failed in {where}",
            why=str(broken).splitlines()[0],
            fix="rebuild the engine; if that does not help, quantize less of the model",
        ) from broken
    engine.check_integrity()
    if result.failures:
        raise StepFailed(
            f"{len(result.failures)} of {len(prompts)} requests failed in {where}",
            why=f"the first one {result.failures[0]}",
            fix="run the engine with `trtx serve` and send it such a request",
        )
    return result
