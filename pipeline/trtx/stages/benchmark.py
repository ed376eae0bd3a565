"""The benchmark step: an engine under load, at every concurrency of every workload."""

from __future__ import annotations

from typing import Any

from trtx.backends.inductor.evidence import CHECK_NAME, ensure_checked
from trtx.bench.report import summarize, write_report
from trtx.bench.sweep import Level, Method, run_sweep
from trtx.runtime.engine import Engine
from trtx.runtime.scheduler import SchedulerSettings
from trtx.stages.base import StepContext
from trtx.stages.params import BenchmarkParams


def run(params: BenchmarkParams, context: StepContext) -> dict[str, Any]:
    """Write benchmark.json, benchmark.csv and check.json. Inputs: engine, weights; witnesses: checkpoint, model.

    Raises StepFailed when a request fails or no token comes, VerificationFailed when these programs with these weights
    do not answer like the model.
    """
    inputs = context.inputs
    # Other weights of the same shape may have joined these programs since they were built.
    ensure_checked(
        inputs["engine"],
        inputs["weights"],
        inputs["checkpoint"],
        inputs["model"],
        context.keys["weights"],
        inputs["engine"] / CHECK_NAME,
        context.output / CHECK_NAME,
    )
    engine = Engine.load(
        inputs["engine"],
        weights=inputs["weights"],
        kv_cache_bytes=params.kv_cache_bytes,
        memory_fraction=params.memory_fraction,
        settings=SchedulerSettings(**params.scheduler.model_dump()),
    )
    levels = [
        Level(name, load.input_tokens, load.output_tokens, concurrency, load.requests)
        for name, load in params.workloads.items()
        for concurrency in load.concurrency
    ]
    method = Method(params.repeats, params.warmup_requests, params.seed)
    report = run_sweep(engine, levels, method, progress=context.progress, say=context.say)
    write_report(context.output, report)
    for note in report.notes:
        context.say(f"note: {note}")
    return {"output_tokens_per_s": summarize(report), "notes": list(report.notes)}
