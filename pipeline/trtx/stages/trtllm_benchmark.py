"""The benchmark step of TensorRT-LLM: trtllm-bench, at every concurrency of every workload."""

from __future__ import annotations

from typing import Any

from trtx.backends.tensorrt_llm.run_benchmark import Load, benchmark
from trtx.stages.base import StepContext
from trtx.stages.params_trtllm import TrtllmBenchmarkParams
from trtx.stages.trtllm_step import make_step


def run(params: TrtllmBenchmarkParams, context: StepContext) -> dict[str, Any]:
    """Write benchmark.json, benchmark.csv and raw/. Inputs: engine, in the PyTorch flow checkpoint."""
    loads = [
        Load(name, load.input_tokens, load.output_tokens, concurrency, load.requests)
        for name, load in params.workloads.items()
        for concurrency in load.concurrency
    ]
    return benchmark(
        params.spec,
        make_step(context),
        loads=loads,
        repeats=params.repeats,
        warmup_requests=params.warmup_requests,
        seed=params.seed,
    )
