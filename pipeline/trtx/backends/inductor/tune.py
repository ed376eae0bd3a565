"""Measures which algorithms of cuBLASLt are fastest: `python -m trtx.backends.inductor.tune job.json`.

Every matrix of the model is multiplied with every number of tokens that has a record of its own, from weights that are
not in the cache, as in a step. The records go into the engine's card, so that every load computes with the same
algorithms, and so does a rebuild that is given them: it measures what it has no record of, or one that the library
refuses.
"""

from __future__ import annotations

import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trtx.backends.inductor.replay import split_record
from trtx.backends.inductor.spec import EngineSpec, TuneJob
from trtx.errors import UsageProblem
from trtx.files import write_json
from trtx.kernels import ops
from trtx.models.layout import head_linear, layer_linears, make_shard
from trtx.processes import die_with_parent
from trtx.runtime.native import load_kernels

DEVICE = "cuda"
# Up to so many tokens products have a kernel of their own (kernels/cuda/few_tokens.cu).
FEW_TOKENS = 8
MAX_CANDIDATES = 16
ROUNDS = 5
# Weights are taken in turn, several times what the cache of any GPU holds.
COLD_BYTES = 300_000_000


class Tuned(BaseModel):
    """One product: its record, the time that it takes, that of cuBLASLt's own first choice, and how many were tried.

    Times are None where the record is an earlier build's, and nothing was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str
    time_us: float | None
    first_us: float | None
    candidates: int


def list_shapes(spec: EngineSpec) -> dict[tuple[str, int, int], None]:
    """(kind, rows, columns) of the products of a model that cuBLASLt computes, each once."""
    shard = make_shard(spec.model, spec.rank.tensor, spec.rank.pipeline, spec.rank.rank)
    linears = [
        linear for layer in shard.layers for linear in layer_linears(spec.model, spec.quantization, shard, layer)
    ]
    linears.append(head_linear(spec.model, shard))
    kinds = {"fp8": "e4m3", "fp8_dynamic": "e4m3"}
    return {(kinds.get(linear.algorithm, "bf16"), linear.out_features, linear.in_features): None for linear in linears}


def list_tokens(largest: int) -> Iterator[int]:
    """Numbers of tokens that have records, up to the first that covers `largest`; see round_tokens in products.cpp."""
    tokens = 16
    while True:
        yield tokens
        if tokens >= largest:
            return
        if tokens < 128:
            tokens += 16
        else:
            # 128, 192, 256, 384, 512, …
            is_power = tokens & (tokens - 1) == 0
            tokens = tokens * 3 // 2 if is_power else tokens * 4 // 3


def tune(spec: EngineSpec, operators: Any, given: Iterable[str] = ()) -> list[Tuned]:
    """Measure all products of a model on the first GPU, but for those that a `given` record computes."""
    known = {split_record(record)[0]: record for record in given}
    rows = {"head": spec.limits.max_batch_size}
    head = head_linear(spec.model, make_shard(spec.model, spec.rank.tensor, spec.rank.pipeline, spec.rank.rank))
    found = []
    for kind, out_features, in_features in list_shapes(spec):
        is_head = (out_features, in_features) == (head.out_features, head.in_features)
        largest = rows["head"] if is_head else spec.limits.max_num_tokens
        weights: list[Tensor] = []
        for tokens in list_tokens(largest):
            record = known.get(f"{kind} {tokens} {out_features} {in_features}")
            if record is not None and accepts(record, kind, tokens, out_features, in_features, operators):
                found.append(Tuned(record=record, time_us=None, first_us=None, candidates=0))
                continue
            weights = weights or make_weights(kind, out_features, in_features)
            found.append(tune_product(kind, tokens, weights, operators))
        del weights
    return found


def accepts(record: str, kind: str, tokens: int, out_features: int, in_features: int, operators: Any) -> bool:
    """Whether the library computes a product with the algorithm of a record, which it is told to do from then on."""
    multiply = multiply_by(make_activations(kind, tokens, in_features), kind)
    try:
        operators.use_products([record])
        multiply(make_weights(kind, out_features, in_features, count=1)[0])
        synchronize()
    except RuntimeError:  # another cuBLASLt, another GPU, or no record at all
        return False
    return True


def synchronize() -> None:
    """Wait for the device, so that what went wrong there is raised here."""
    torch.cuda.synchronize()


def make_weights(kind: str, out_features: int, in_features: int, count: int | None = None) -> list[Tensor]:
    """Random weights of one shape, as many as a cold cache takes, or `count`."""
    size = out_features * in_features * (1 if kind == "e4m3" else 2)
    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.bfloat16
    count = count or max(1, min(32, COLD_BYTES // size + 1))
    return [torch.randn(out_features, in_features, device=DEVICE, dtype=torch.bfloat16).to(dtype) for _ in range(count)]


def make_activations(kind: str, tokens: int, in_features: int) -> Tensor:
    """Random activations of so many tokens."""
    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.bfloat16
    return torch.randn(tokens, in_features, device=DEVICE, dtype=torch.bfloat16).to(dtype)


def multiply_by(x: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    """What multiplies these activations with a weight."""
    return (
        (lambda weight: ops.linear_e4m3(x, weight)) if kind == "e4m3" else (lambda weight: ops.linear_bf16(x, weight))
    )


def tune_product(kind: str, tokens: int, weights: list[Tensor], operators: Any) -> Tuned:
    """The fastest algorithm of one product."""
    x = make_activations(kind, tokens, weights[0].shape[1])
    multiply = multiply_by(x, kind)
    times: list[tuple[float, str]] = []
    for record in operators.product_candidates(x, weights[0], MAX_CANDIDATES):
        try:
            operators.use_products([record])
            times.append((time_us(multiply, weights), record))
        except RuntimeError:  # an algorithm that does not take this shape after all
            continue
    if not times:
        raise UsageProblem(f"no algorithm computes {kind} {tuple(weights[0].shape)} for {tokens} tokens")
    best = min(times)
    operators.use_products([best[1]])
    return Tuned(record=best[1], time_us=best[0], first_us=times[0][0], candidates=len(times))


def time_us(multiply: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    """Median time of one product in microseconds."""
    for weight in weights[:2]:
        multiply(weight)
    figures = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for weight in weights:
            multiply(weight)
        end.record()
        torch.cuda.synchronize()
        figures.append(float(start.elapsed_time(end)) * 1000 / len(weights))
    return statistics.median(figures)


def main(arguments: list[str]) -> int:
    """Tune for the job file named by the one argument."""
    die_with_parent(signal.SIGKILL)
    job = TuneJob.model_validate_json(Path(arguments[0]).read_bytes())
    operators = load_kernels(Path(job.library), job.namespace)
    ops.use_namespace(job.namespace)
    torch.manual_seed(0)
    with torch.inference_mode():
        found = tune(job.spec, operators, job.given)
    write_json(Path(job.records), [one.model_dump(mode="json") for one in found])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
