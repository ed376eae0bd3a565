"""Times the native kernels beside torch's own operators, called in turn in the same run.

    python benchmarks/kernels.py [--runs 7] [--threads N] [--level NAME] [--json]

Weights are more than the caches hold, so every call reads them from memory, as in decoding. `share` is the part of this
machine's copy bandwidth (bytes read and written by a large copy_, in the same run) at which a kernel reads what it
must: weights and scales, or keys and values. Times are the least of all runs. With one thread they are its CPU time,
which says most on a machine that is busy with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trtx.backends.inductor.build import compiler_version, find_compiler
from trtx.hardware.host import read_host
from trtx.kernels import ops, reference
from trtx.kernels.build import LibraryJob, build_library, make_namespace
from trtx.paths import kernels_dir
from trtx.runtime.native import load_kernels

TOKENS = (1, 4, 8, 16, 32, 128)
# Rows and columns of the linears of a Llama of 290 million parameters: gate and up, down, qkv.
SHAPES = ((5632, 1024), (1024, 2816), (2048, 1024))
GROUP = 128
# Bytes of weights that are gone through before any is read again.
COLD_BYTES = 96 << 20
# Of attention: sequences, tokens of each, context.
BATCHES = ((1, 1, 128), (1, 1, 2048), (8, 1, 1024), (1, 512, 512), (1, 512, 2048))
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 16, 8, 64, 16


# Computes with one of several copies of its operands.
Call = Callable[[int], object]


@dataclass(frozen=True)
class Row:
    """One kernel on one shape. `beside` is what torch takes for the same in bfloat16."""

    kernel: str
    shape: str
    tokens: int
    us: float
    beside_us: float
    gb_per_s: float
    share: float

    @property
    def ratio(self) -> float:
        return self.beside_us / self.us


def load(level: str | None) -> Any:
    """The library of this machine's instruction set."""
    isa, compiler = read_host(gpus=False).isa, find_compiler()
    if isa is None:
        raise SystemExit("this processor is older than x86-64-v3")
    namespace = make_namespace(isa.march, compiler_version(compiler))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        paths = {"work": folder, "library": str(library), "shelf": str(kernels_dir(os.environ))}
        build_library(
            LibraryJob(
                march=isa.march, namespace=namespace, compiler=str(compiler), processes=os.cpu_count() or 1, **paths
            )
        )
        operators = load_kernels(library, namespace)
    ops.use_namespace(namespace)
    if level:
        operators.choose_level(level)
    return operators


def take_least(runs: int, calls: list[Call], count: int) -> list[float]:
    """Seconds of one call of each, over `count` copies of its operands, all in turn."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = [float("inf")] * len(calls)
    for _ in range(runs):
        for index, call in enumerate(calls):
            started = clock()
            for copy in range(count):
                call(copy)
            least[index] = min(least[index], (clock() - started) / count)
    return least


def measure_copy(runs: int) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source, target = torch.ones(COLD_BYTES, dtype=torch.uint8), torch.empty(COLD_BYTES, dtype=torch.uint8)
    return 2 * COLD_BYTES / take_least(runs, [lambda _: target.copy_(source)], 1)[0]


def make_linears(n: int, k: int, count: int) -> dict[str, tuple[Callable[[Tensor, int], Tensor], int]]:
    """Products of x with one of `count` weights, and the bytes that each reads of it; torch's own first."""
    plain = [torch.randn(n, k).bfloat16() for _ in range(count)]
    int8 = [torch.randint(-128, 128, (n, k), dtype=torch.int8) for _ in range(count)]
    int4 = [torch.randint(0, 256, (n, k // 2), dtype=torch.uint8) for _ in range(count)]
    fp8 = [weight.to(torch.float8_e4m3fn) for weight in plain]
    scale, scales, input_scale = torch.rand(n), torch.rand(n, k // GROUP), torch.tensor(0.03)
    return {
        "torch": (lambda x, i: F.linear(x, plain[i]), 2 * n * k),
        "linear_bf16": (lambda x, i: ops.linear_bf16(x, plain[i]), 2 * n * k),
        "linear_int8": (lambda x, i: ops.linear_int8(x, int8[i], scale), n * k + 4 * n),
        "linear_fp8": (lambda x, i: ops.linear_fp8(x, fp8[i], scale), n * k + 4 * n),
        "linear_int4": (lambda x, i: ops.linear_int4(x, int4[i], scales), n * k // 2 + 4 * n * k // GROUP),
        "linear_w8a8": (lambda x, i: ops.linear_w8a8(x, int8[i], scale, input_scale), n * k + 4 * n),
    }


def measure_linears(runs: int, copy_bandwidth: float) -> Iterator[Row]:
    for n, k in SHAPES:
        count = max(2, COLD_BYTES // (2 * n * k))
        linears = make_linears(n, k, count)
        for tokens in TOKENS:
            x = torch.randn(tokens, k).bfloat16()
            beside, *times = take_least(runs, [partial(linear, x) for linear, _ in linears.values()], count)
            for (name, (_, size)), taken in zip(list(linears.items())[1:], times, strict=True):
                rate = size / taken
                yield Row(name, f"{n}x{k}", tokens, taken * 1e6, beside * 1e6, rate / 1e9, rate / copy_bandwidth)


def make_attentions(sequences: int, tokens: int, context: int, count: int) -> tuple[Call, Call]:
    """Attention over one of `count` pairs of pools: gather and torch's under a mask, then the kernel."""
    width = context // BLOCK
    shape = (1 + sequences * width, BLOCK, KV_HEADS, HEAD_DIM)
    pools = [(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()) for _ in range(count)]
    tables = (torch.randperm(shape[0] - 1) + 1).view(sequences, width).int()
    starts, lengths = (torch.arange(sequences + 1) * tokens).int(), torch.full((sequences,), context).int()
    q = torch.randn(sequences * tokens, HEADS, HEAD_DIM).bfloat16()
    mask = torch.ones(tokens, context, dtype=torch.bool).tril(context - tokens)

    def gather(i: int) -> Tensor:
        k, v = (pool[tables.long()].flatten(1, 2).transpose(1, 2) for pool in pools[i])
        grid = q.view(sequences, tokens, HEADS, HEAD_DIM).transpose(1, 2)
        return F.scaled_dot_product_attention(grid, k, v, attn_mask=mask, enable_gqa=True)

    def native(i: int) -> Tensor:
        return ops.paged_attention(q, *pools[i], tables, starts, lengths, scale=HEAD_DIM**-0.5)

    return gather, native


def measure_attention(runs: int, copy_bandwidth: float) -> Iterator[Row]:
    for sequences, tokens, context in BATCHES:
        size = 4 * sequences * context * KV_HEADS * HEAD_DIM
        count = max(2, COLD_BYTES // size) if tokens == 1 else 2
        beside, taken = take_least(runs, list(make_attentions(sequences, tokens, context, count)), count)
        rate, shape = size / taken, f"{sequences} x {context}"
        yield Row("paged_attention", shape, tokens, taken * 1e6, beside * 1e6, rate / 1e9, rate / copy_bandwidth)


def check(operators: Any) -> None:
    """A kernel that is wrong is not worth timing."""
    weight, scale = torch.randint(-128, 128, (64, 256), dtype=torch.int8), torch.rand(64)
    x = torch.randn(5, 256).bfloat16()
    found, expected = (
        operators.linear_w8a8(x, weight, scale, None, None),
        reference.linear_w8a8(x, weight, scale, None, None),
    )
    assert torch.equal(found, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--level", help="avx512_bf16 or baseline; the best that there is by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    operators = load(options.level)
    check(operators)
    copy_bandwidth = measure_copy(options.runs)
    facts = {
        "level": operators.current_level(),
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": copy_bandwidth / 1e9,
    }
    if not options.json:
        print(f"level {facts['level']}, {facts['threads']} threads, copy {facts['copy_gb_per_s']:.1f} GB/s")
        print("| kernel | shape | tokens | µs | torch bf16 µs | times as fast | GB/s | share of copy |")
        print("|---|---|---|---|---|---|---|---|")
    rows = []
    for row in (*measure_linears(options.runs, copy_bandwidth), *measure_attention(options.runs, copy_bandwidth)):
        rows.append({**asdict(row), "ratio": row.ratio})
        if not options.json:
            cells = (
                f"{row.us:.0f}",
                f"{row.beside_us:.0f}",
                f"{row.ratio:.2f}",
                f"{row.gb_per_s:.1f}",
                f"{row.share:.0%}",
            )
            print(f"| {row.kernel} | {row.shape} | {row.tokens} | {' | '.join(cells)} |", flush=True)
    if options.json:
        print(json.dumps({**facts, "rows": rows}))


if __name__ == "__main__":
    main()
