"""Measures which kernels compute a model's products fastest: `python -m trtx.backends.inductor.tune job.json`.

Every matrix of the model is multiplied with every number of tokens that has a record of its own, from weights that are
not in the cache, as in a step. The records go into the engine's card, so that every load computes with the same
ones, and so does a rebuild that is given them: it measures what it has no record of, or one that the library refuses.
"""

from __future__ import annotations

import os
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
from trtx.kernels.shelf import alone
from trtx.models.fused import MAX_NORM_CHANNELS, can_fuse
from trtx.models.layout import head_linear, layer_linears, make_shard
from trtx.paths import kernels_dir
from trtx.processes import die_with_parent
from trtx.runtime.native import load_kernels

DEVICE = "cuda"
# The kernels for a gated product, and for any of few tokens, are kernels/cuda/streamed_product.cu and few_tokens.cu.
FEW_TOKENS, MAX_STREAMED_TOKENS = 8, 128
GATED = "-gated"
MAX_CANDIDATES = 16
ROUNDS = 5
# Only one process of a machine measures at a time.
MEASURING = "measuring"
# Weights are taken in turn, several times what the cache of any GPU holds.
COLD_BYTES = 300_000_000


class Tuned(BaseModel):
    """One product: its record, the time that it takes, that of the first candidate, and how many were tried.

    Times are None where the record is an earlier build's, and nothing was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str
    time_us: float | None
    first_us: float | None
    candidates: int


def list_shapes(spec: EngineSpec) -> dict[tuple[str, int, int], int]:
    """(kind, rows, columns) of the products of a model, and the most tokens each is computed with."""
    shard = make_shard(spec.model, spec.rank.tensor, spec.rank.pipeline, spec.rank.rank)
    is_fused = can_fuse(spec.model, shard, spec.dtype)
    kinds = {"fp8": "e4m3", "fp8_dynamic": "e4m3"}
    shapes: dict[tuple[str, int, int], int] = {}
    for layer in shard.layers:
        for linear in layer_linears(spec.model, spec.quantization, shard, layer):
            kind, size = kinds.get(linear.algorithm, "bf16"), (linear.out_features, linear.in_features)
            shapes[kind, *size] = spec.limits.max_num_tokens
            is_gate = is_fused and linear.name.endswith(".gate_up") and not linear.bias
            if is_gate and linear.algorithm in ("none", "fp8"):
                shapes[f"{kind}{GATED}", *size] = min(MAX_STREAMED_TOKENS, spec.limits.max_num_tokens)
    head = head_linear(spec.model, shard)
    shapes.setdefault(("bf16", head.out_features, head.in_features), spec.limits.max_batch_size)
    return shapes


def list_tokens(largest: int) -> Iterator[int]:
    """Numbers of tokens that have records, up to the first that covers `largest`; see round_tokens in products.cpp."""
    tokens = FEW_TOKENS
    while True:
        yield tokens
        if tokens >= largest:
            return
        if tokens < 128:
            tokens = tokens // 16 * 16 + 16
        else:
            # 128, 192, 256, 384, 512, …
            is_power = tokens & (tokens - 1) == 0
            tokens = tokens * 3 // 2 if is_power else tokens * 4 // 3


def tune(spec: EngineSpec, operators: Any, given: Iterable[str] = ()) -> list[Tuned]:
    """Measure all products of a model on the first GPU, but for those that a `given` record computes."""
    known = {split_record(record)[0]: record for record in given}
    is_fused = can_fuse(spec.model, make_shard(spec.model, spec.rank.tensor, spec.rank.pipeline, 0), spec.dtype)
    found = []
    for (kind, out_features, in_features), largest in list_shapes(spec).items():
        weights: list[Tensor] = []
        for tokens in list_tokens(largest):
            record = known.get(f"{kind} {tokens} {out_features} {in_features}")
            if record is not None and accepts(record, kind, tokens, out_features, in_features, operators):
                found.append(Tuned(record=record, time_us=None, first_us=None, candidates=0))
                continue
            weights = weights or make_weights(kind, out_features, in_features)
            follows_norm = is_fused and tokens <= MAX_STREAMED_TOKENS and in_features <= MAX_NORM_CHANNELS
            found.append(tune_product(kind, tokens, weights, operators, follows_norm=follows_norm))
        del weights
    return found


def accepts(record: str, kind: str, tokens: int, out_features: int, in_features: int, operators: Any) -> bool:
    """Whether the library computes a product in the way of a record, which it is told to do from then on."""
    x, weight = make_activations(kind, tokens, in_features), make_weights(kind, out_features, in_features, count=1)[0]
    try:
        operators.use_products([record])
        multiply_by(kind)(x, weight)
        synchronize()
    except RuntimeError:  # another cuBLASLt, another GPU, or no record at all
        return False
    return True


def synchronize() -> None:
    """Wait for the device, so that what went wrong there is raised here."""
    torch.cuda.synchronize()


def make_weights(kind: str, out_features: int, in_features: int, count: int | None = None) -> list[Tensor]:
    """Random weights of one shape, as many as a cold cache takes, or `count`."""
    dtype = _dtype(kind)
    count = count or max(1, min(32, COLD_BYTES // (out_features * in_features * dtype.itemsize) + 1))
    return [torch.randn(out_features, in_features, device=DEVICE, dtype=torch.bfloat16).to(dtype) for _ in range(count)]


def make_activations(kind: str, tokens: int, in_features: int) -> Tensor:
    """Random activations of so many tokens."""
    return torch.randn(tokens, in_features, device=DEVICE, dtype=torch.bfloat16).to(_dtype(kind))


def make_norm(kind: str, tokens: int, in_features: int) -> Callable[[], Tensor]:
    """What makes such activations anew, as the kernel before a product does."""
    x = make_activations("bf16", tokens, in_features)
    weight = torch.ones(in_features, device=DEVICE, dtype=torch.bfloat16)
    y_scale = torch.ones((), device=DEVICE) if kind.startswith("e4m3") else None
    return lambda: ops.rms_norm(x, weight, 1e-5, plus_one=False, y_scale=y_scale)


def multiply_by(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """What multiplies activations and a weight of a kind. Nothing is made in a call but the result."""
    if kind.endswith(GATED):
        y_scale = torch.ones((), device=DEVICE) if kind.startswith("e4m3") else None
        return lambda x, weight: ops.gated_linear(x, weight, y_scale=y_scale)
    if kind == "e4m3":
        return lambda x, weight: ops.linear_e4m3(x, weight)
    return lambda x, weight: ops.linear_bf16(x, weight)


def tune_product(kind: str, tokens: int, weights: list[Tensor], operators: Any, *, follows_norm: bool = False) -> Tuned:
    """The fastest way of one product.

    With `follows_norm` it is measured with the kernel before it, as it is in a step: one that reads its weight
    meanwhile gains by that, one that cannot start early loses. The times are those of both.
    """
    x = make_activations(kind, tokens, weights[0].shape[1])
    norm = make_norm(kind, tokens, weights[0].shape[1]) if follows_norm else None
    multiply = multiply_by(kind)

    def run(weight: Tensor) -> Tensor:
        return multiply(x if norm is None else norm(), weight)

    times: list[tuple[float, str]] = []
    for record in operators.product_candidates(x, weights[0], kind.endswith(GATED), MAX_CANDIDATES):
        try:
            operators.use_products([record])
            times.append((time_us(run, weights), record))
        except RuntimeError:  # an algorithm that does not take this shape after all
            continue
    if not times:
        raise UsageProblem(f"no algorithm computes {kind} {tuple(weights[0].shape)} for {tokens} tokens")
    best = min(times)
    operators.use_products([best[1]])
    return Tuned(record=best[1], time_us=best[0], first_us=times[0][0], candidates=len(times))


def time_us(run: Callable[[Tensor], Tensor], weights: list[Tensor]) -> float:
    """Median time of one product in microseconds, one after another as in a step: from a graph."""
    run(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            run(weight)
    graph.replay()
    figures = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        figures.append(float(start.elapsed_time(end)) * 1000 / len(weights))
    return statistics.median(figures)


def _dtype(kind: str) -> torch.dtype:
    return torch.float8_e4m3fn if kind.startswith("e4m3") else torch.bfloat16


def main(arguments: list[str]) -> int:
    """Tune for the job file named by the one argument."""
    die_with_parent(signal.SIGKILL)
    job = TuneJob.model_validate_json(Path(arguments[0]).read_bytes())
    operators = load_kernels(Path(job.library), job.namespace)
    ops.use_namespace(job.namespace)
    torch.manual_seed(0)
    # Two that measure at once would each find what suits a GPU that is half busy.
    with alone(kernels_dir(os.environ), MEASURING), torch.inference_mode():
        found = tune(job.spec, operators, job.given)
    write_json(Path(job.records), [one.model_dump(mode="json") for one in found])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
