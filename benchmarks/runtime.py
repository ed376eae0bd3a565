"""Measures the embedded runtime on a CPU, beside transformers' `generate` on the same weights, dtype and threads.

    python benchmarks/runtime.py [--cache FOLDER] [--only SECTION …] [--threads 2 | --busy] [--quick] [--json]

Two models: the demo model of recipes/quickstart.yaml in float32, and a Llama of 290 million random numbers in bfloat16.
Who is compared takes turns within this process, so that a busy moment is everybody's; a ratio is the median of those
of the rounds, a value the best round's. Models and engines are made once and kept in --cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from runtime_bench import Bench, Figure
from runtime_engines import TOKENS_PER_BLOCK, Kind, Shop
from runtime_formats import FORMATS, QUICK_FORMATS, measure_formats
from runtime_serve import run_storm

from trtx.hardware.host import read_host
from trtx.paths import cache_dir
from trtx.runtime.program import load_programs
from trtx.runtime.stats import StepStats

DEMO = Kind("demo", dtype="float32")
BF16, INT4, W8A8 = Kind("large"), Kind("large", "int4_wo"), Kind("large", "int8_sq")
MIXTURE = Kind("mixture")
MIXTURES = [MIXTURE, *(Kind("mixture", algorithm) for algorithm in ("int8_wo", "int4_wo", "fp8"))]
GATHER = Kind("large", "int4_wo", attention="gather")
CONTEXT = 2048


def measure_demo(bench: Bench) -> list[Figure]:
    """The demo model, one sequence; transformers with one thread too, where that is faster."""
    new = 128

    def one(call: Callable[..., int], **how: Any) -> Callable[[], int]:
        return lambda: call(DEMO, bench.prompts(DEMO, 1, 32), new, **how)

    calls = {"ours": one(bench.ours), "theirs": one(bench.theirs), "alone": one(bench.theirs, threads=1)}
    found = bench.race(7, calls)
    peer = max("theirs", "alone", key=found.best)
    used = bench.threads if peer == "theirs" else 1
    bench.engine(DEMO).use_thread()
    own = f"threads: {torch.get_num_threads()}, as the engine chooses for so small a model"
    return [
        Figure("demo float32 batch 1", found.best("ours"), "tokens/s", note=own),
        Figure("transformers", found.best(peer), "tokens/s", note=f"threads: {used}, its faster number"),
        Figure("demo float32 batch 1 / transformers", found.ratio("ours", peer), "×", at_least=3),
    ]


def measure_decoding(bench: Bench) -> list[Figure]:
    """290 M: bfloat16 with one and 16 sequences, INT4 with one, against transformers in bfloat16."""
    new = 32 if bench.quick else 96
    figures = []
    for batch, kinds in ((1, (BF16, INT4, W8A8)), (16, (BF16, INT4, W8A8))):
        calls: dict[str, Callable[[], int]] = {
            kind.algorithm: lambda kind=kind, batch=batch: bench.ours(kind, bench.prompts(kind, batch, 32), new)
            for kind in kinds
        }
        calls["theirs"] = lambda batch=batch: bench.theirs(BF16, bench.prompts(BF16, batch, 32), new)
        found = bench.race(3, calls)
        figures.append(Figure(f"transformers bf16 batch {batch}", found.best("theirs"), "tokens/s"))
        goals = {("none", 1): 1.2, ("none", 16): 1.8, ("int4_wo", 1): 3.0}
        for kind in kinds:
            name = f"290 M {'bf16' if kind is BF16 else kind.algorithm} batch {batch}"
            ratio = found.ratio(kind.algorithm, "theirs")
            figures.append(Figure(name, found.best(kind.algorithm), "tokens/s"))
            goal = goals.get((kind.algorithm, batch))
            figures.append(Figure(f"{name} / transformers bf16", ratio, "×", at_least=goal))
    return figures


def measure_prefill(bench: Bench) -> list[Figure]:
    """Prompts of 512 tokens, one at a time, in bfloat16 and W8A8."""

    def prefill(kind: Kind) -> int:
        bench.ours(kind, bench.prompts(kind, 1, 512), 1)
        return 512

    found = bench.race(5, {kind.algorithm: partial(prefill, kind) for kind in (BF16, W8A8, INT4)})
    return [
        Figure("290 M bf16 prefill", found.best("none"), "tokens/s"),
        Figure("290 M W8A8 prefill", found.best("int8_sq"), "tokens/s"),
        Figure("290 M INT4 prefill / bf16", found.ratio("int4_wo", "none"), "×"),
        Figure("290 M W8A8 prefill / bf16", found.ratio("int8_sq", "none"), "×", at_least=1.3),
    ]


def measure_experts(bench: Bench) -> list[Figure]:
    """A mixture of 8 experts, two for each token, in bfloat16 against transformers, and with quantized experts."""
    new = 32 if bench.quick else 64
    figures = []
    for name, batch, length, tokens in (("batch 1", 1, 32, new), ("batch 8", 8, 32, new), ("prefill", 1, 512, 1)):

        def ours(kind: Kind, batch: int = batch, length: int = length, tokens: int = tokens) -> int:
            bench.ours(kind, bench.prompts(kind, batch, length), tokens)
            return batch * max(tokens, length * (tokens == 1))

        def theirs(batch: int = batch, length: int = length, tokens: int = tokens) -> int:
            bench.theirs(MIXTURE, bench.prompts(MIXTURE, batch, length), tokens)
            return batch * max(tokens, length * (tokens == 1))

        kinds = {kind.algorithm: partial(ours, kind) for kind in MIXTURES}
        found = bench.race(3, {**kinds, "theirs": theirs})
        figures.append(Figure(f"transformers, mixture bf16 {name}", found.best("theirs"), "tokens/s"))
        for kind in MIXTURES:
            what = f"mixture {'bf16' if kind is MIXTURE else kind.algorithm} {name}"
            figures.append(Figure(what, found.best(kind.algorithm), "tokens/s"))
            ratio = found.ratio(kind.algorithm, "theirs")
            figures.append(Figure(f"{what} / transformers bf16", ratio, "×"))
    return figures


def measure_in_flight(bench: Bench) -> list[Figure]:
    """32 requests of random length: as they come and go, and in static batches that each run to their longest."""
    count, static = 32, 16
    shortest, longest = (4, 64) if bench.quick else (16, 256)
    draw = random.Random(1)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]

    def theirs() -> int:
        prompts = bench.prompts(BF16, count, 32)
        for start in range(0, count, static):
            part = slice(start, start + static)
            bench.theirs(BF16, prompts[part], max(lengths[part]))
        return sum(lengths)

    calls = {"ours": lambda: bench.ours(BF16, bench.prompts(BF16, count, 32), lengths), "theirs": theirs}
    # No round to warm up: each takes long.
    bench.ours(BF16, bench.prompts(BF16, count, 32), 2)
    found = bench.race(2, calls, warm=True)
    note = f"{sum(lengths)} tokens, {shortest} to {longest} each"
    return [
        Figure(f"{count} requests in flight, 290 M bf16", found.best("ours"), "tokens/s", note=note),
        Figure(f"transformers, static batches of {static}", found.best("theirs"), "tokens/s"),
        Figure(f"{count} requests in flight / static batches", found.ratio("ours", "theirs"), "×", at_least=2.5),
    ]


def measure_context(bench: Bench) -> list[Figure]:
    """One more token of sequences that have 2,047, by the same program with native and with gathering attention."""
    width = CONTEXT // TOKENS_PER_BLOCK
    figures = []
    torch.set_num_threads(bench.threads)
    for batch in (1, 4):
        num_blocks = 1 + batch * width
        calls = {}
        for kind in (INT4, GATHER):
            built = bench.built[kind]
            programs = load_programs(built.engine, built.weights, num_blocks)
            # Memory that was never written has no pages to read from.
            for pool in programs._pools:
                pool.normal_()
            calls[kind.attention] = _repeat(programs.step, _decode_inputs(batch, width))
        found = bench.race(7, calls)
        figures.append(
            Figure(f"290 M INT4 batch {batch}, context 2,048, native", 1000 / found.best("native"), "ms/step")
        )
        figures.append(
            Figure(f"290 M INT4 batch {batch}, context 2,048, gather", 1000 / found.best("gather"), "ms/step")
        )
        ratio = found.ratio("native", "gather")
        figures.append(Figure(f"native / gather, batch {batch}", ratio, "×", at_least=3))
    return figures


def _repeat(step: Callable[..., Any], inputs: Sequence[torch.Tensor], times: int = 3) -> Callable[[], int]:
    def call() -> int:
        for _ in range(times):
            step(*inputs)
        return times

    return call


def _decode_inputs(batch: int, width: int) -> tuple[torch.Tensor, ...]:
    """Inputs of a step with one more token of every sequence; all tables are as wide as they go."""
    tables = torch.arange(1, 1 + batch * width, dtype=torch.int32).view(batch, width)
    last = CONTEXT - 1
    return (
        torch.full((batch,), 5),
        torch.full((batch,), last),
        tables[:, -1].long() * TOKENS_PER_BLOCK + last % TOKENS_PER_BLOCK,
        tables,
        torch.arange(batch + 1, dtype=torch.int32),
        torch.full((batch,), CONTEXT, dtype=torch.int32),
        torch.arange(batch),
    )


def measure_overhead(bench: Bench) -> list[Figure]:
    """Part of a step in which no program runs, from the engine's own figures: everything around it counts."""
    figures = []
    for overlap in (False, True):
        for batch in (1, 16):
            engine = bench.engine(BF16, overlap=overlap)
            shares = []
            for _ in range(1 if bench.quick else 3):
                engine.stats.steps.clear()  # it keeps the last thousand only
                bench.ours(BF16, bench.prompts(BF16, batch, 32), 48, overlap)
                shares.append(_share(engine.stats.steps))
            loop = "overlapped" if overlap else "plain"
            name = f"outside of programs, {loop} loop, 290 M bf16 batch {batch}"
            figures.append(Figure(name, 100 * min(shares), "% of step", at_most=5))
    return figures


def _share(steps: Iterable[StepStats]) -> float:
    """Median over steps that only decode."""
    return statistics.median(1 - step.program_s / step.step_s for step in steps if not step.prompt_tokens)


def measure_prefix(bench: Bench) -> list[Figure]:
    """The first token of a prompt that begins with 512 tokens, and of a second one that begins with the same."""
    first, second = [], []
    for _ in range(2 if bench.quick else 6):
        shared, *ends = bench.prompts(BF16, 1, 512)[0], *bench.prompts(BF16, 2, 8)
        for end, times in zip(ends, (first, second), strict=True):
            began = bench.clock()
            bench.ours(BF16, [shared + end], 1)
            times.append(bench.clock() - began)
    pairs = list(zip(first[1:], second[1:], strict=True))
    return [
        Figure("512 shared tokens and 8 others, the first time", 1000 * min(first), "ms"),
        Figure("the same 512 and 8 others again", 1000 * min(second), "ms"),
        Figure("again / first", 100 * statistics.median(b / a for a, b in pairs), "%", at_most=10),
    ]


def measure_serving(bench: Bench) -> list[Figure]:
    """A thousand streaming clients at once, two fifths of which leave, twice."""
    num_clients = 200 if bench.quick else 1000
    with tempfile.TemporaryDirectory() as name:
        engine = bench.shop.ready_folder(bench.built[DEMO], Path(name) / "demo")
        storm = run_storm(engine, Path(name) / "server.log", num_clients, seed=2)
    allowed = {"answered", "left", "status 429"}
    wrong = sum(count for outcome, count in storm.outcomes.items() if outcome not in allowed)
    note = ", ".join(f"{count} {outcome}" for outcome, count in sorted(storm.outcomes.items()))
    ready, middle, end = (size / 2**20 for size in storm.rss_bytes)
    memory = f"{ready:.0f} MiB when ready, {middle:.0f} after the first wave, {end:.0f} after the second"
    return [
        Figure(f"2 × {num_clients} streams, errors", wrong, "", at_most=0, note=note),
        Figure("blocks in use afterwards", storm.blocks_left, "", at_most=0),
        Figure("requests left afterwards", storm.requests_left, "", at_most=0),
        Figure("memory after the second wave / the first", end / middle, "×", at_most=1.05, note=memory),
        Figure("served in the second wave", storm.output_tokens / storm.seconds, "tokens/s", note="client included"),
    ]


def measure_builds(bench: Bench) -> list[Figure]:
    """What an engine is made of, and what that takes. Two programs at a time were compiled for the benchmark."""
    seconds, size = bench.shop.kernel_library()
    figures = [
        Figure("kernel library, build", seconds, "s", note="two processes"),
        Figure("kernel library, size", size / 2**20, "MiB"),
    ]
    for kind in (DEMO, BF16, INT4, W8A8):
        built = bench.built[kind]
        note = f"{built.num_programs} program, {built.program_bytes / 2**20:.2f} MiB"
        figures.append(Figure(f"build of {kind.name}", built.seconds, "s", note=note))
    return figures


# Name → what it measures, and the engines that it needs.
SECTIONS: dict[str, tuple[Callable[[Bench], list[Figure]], Sequence[Kind]]] = {
    "demo": (measure_demo, (DEMO,)),
    "decode": (measure_decoding, (BF16, INT4, W8A8)),
    "prefill": (measure_prefill, (BF16, W8A8, INT4)),
    "experts": (measure_experts, MIXTURES),
    "in-flight": (measure_in_flight, (BF16,)),
    "context": (measure_context, (INT4, GATHER)),
    "overhead": (measure_overhead, (BF16,)),
    "prefix": (measure_prefix, (BF16,)),
    "formats": (measure_formats, FORMATS),
    "serving": (measure_serving, (DEMO,)),
    "builds": (measure_builds, (DEMO, BF16, INT4, W8A8)),
}


def describe_machine(threads: int) -> dict[str, Any]:
    host = read_host(gpus=False)
    return {
        "cpu": host.cpu_model,
        "cpus": host.num_cpus,
        "threads": threads,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("trtx", "torch", "transformers")},
    }


def format_row(figure: Figure) -> str:
    met = {None: "", True: "met", False: "MISSED"}[figure.met]
    note = f"  ({figure.note})" if figure.note else ""
    return f"{figure.what:64} {figure.value:10.2f} {figure.unit:10} {figure.promise:7} {met:6}{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kept = cache_dir(os.environ).with_name("trtx-benchmark-runtime")
    parser.add_argument("--cache", type=Path, default=kept, help="where models and engines are kept")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default 2)")
    parser.add_argument(
        "--busy", action="store_true", help="one thread and processor time: the machine does other work"
    )
    parser.add_argument("--quick", action="store_true", help="one round of less, for a look")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    say: Callable[[str], None] = partial(print, file=sys.stderr, flush=True)
    wanted = {name: SECTIONS[name] for name in asked.only}
    kinds = [kind for name, (_, needed) in wanted.items() for kind in needed]
    if asked.quick:
        kinds = [kind for kind in kinds if kind not in FORMATS or kind in QUICK_FORMATS]
    threads = 1 if asked.busy else asked.threads
    machine, began = describe_machine(threads), time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # on which ModelOpt talks
        shop = Shop(asked.cache.absolute(), say)
        bench = Bench(shop, threads, kinds, quick=asked.quick, busy=asked.busy)
    say(f"models and engines are there after {time.perf_counter() - began:.0f} s")
    figures = []
    for name, (section, _) in wanted.items():
        started = time.perf_counter()
        found = section(bench)
        figures += found
        say(f"-- {name}, {time.perf_counter() - started:.0f} s")
        for figure in found:
            say(format_row(figure))
    machine |= {"seconds": round(time.perf_counter() - began), "load_average_after": os.getloadavg()}
    if asked.json:
        rows = [{**asdict(figure), "met": figure.met} for figure in figures]
        print(json.dumps({"schema": "trtx.benchmark.runtime/v1", "machine": machine, "figures": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for figure in figures:
        print(format_row(figure))


if __name__ == "__main__":
    main()
