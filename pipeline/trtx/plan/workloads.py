"""The loads of a benchmark as its step has them."""

from __future__ import annotations

from trtx.recipe.measure import Benchmark
from trtx.stages.params import Workload


def plan_workloads(benchmark: Benchmark) -> dict[str, Workload]:
    """The loads by name, with the number of requests that the recipe may leave open."""
    return {
        name: Workload(
            input_tokens=load.input_tokens,
            output_tokens=load.output_tokens,
            concurrency=tuple(load.concurrency),
            requests=load.num_requests,
        )
        for name, load in benchmark.workloads.items()
    }
