"""The embedded engine on a GPU: tokens per second of a Llama-3-8B shape with random weights, beside the physical limit.

    python benchmarks/gpu.py --out benchmarks/results/h200.json

In one call it measures the device's own ceilings (a copy, products of 8192³), builds the engines as a build step does,
and runs every load of the table through the whole engine: requests in, text out. A limit is what the measured copy
bandwidth allows when a step reads all weights and every key and value once, and what the measured products allow where
prompts are computed: those of bf16 for all formats but fp8, whose activations have 8 bits, too. Loads whose goal is
missed come with the profile of a step; int4_awq and int8_wo have no goal.

The peers' figures stand in docs/gpu.md: they were measured on such a machine, not in this call.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_engines import FORMATS, LIMITS, Built, build_engine, count_products, load_engine, make_weights
from gpu_start import measure_start

from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.request import SamplingParams

SIDE = 8192
# Output tokens of runs that warm up or are looked into.
SHORT_TOKENS = 16


@dataclass(frozen=True)
class Load:
    """So many requests, of them `concurrency` under way at once; `goals` are tokens per second by format.

    The longer a run, the fewer `repeats` it takes to know it.
    """

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    goals: dict[str, float]
    repeats: int

    def shorten(self, waves: int) -> Load:
        """The same with few output tokens, and with so many requests for each that is under way at once."""
        return replace(self, requests=min(self.requests, waves * self.concurrency), output_tokens=SHORT_TOKENS)


LOADS = (
    Load("decode, 128 requests, 8 in / 248 out", 128, 8, 248, 128, {"bf16": 27000, "fp8": 40000}, 3),
    Load("512 requests at 128, 128 in / 128 out", 512, 128, 128, 128, {"bf16": 16500, "fp8": 26000}, 2),
    Load("one request, 8 in / 248 out", 1, 8, 248, 1, {"bf16": 260, "fp8": 480}, 3),
)


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches in this call."""

    copy_tb_s: float
    bf16_tflop_s: float
    fp8_tflop_s: float


def time_s(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of a call on the device."""
    call()
    figures = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        figures.append(start.elapsed_time(end) / 1000)
    return statistics.median(figures)


def measure_ceilings() -> Ceilings:
    """A copy of 2 GB counted twice, and products on random data."""
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / time_s(lambda: target.copy_(source))
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    operations = 2 * SIDE**3
    wide = operations / time_s(lambda: a @ b)
    one = torch.ones((), device="cuda")
    c, d = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    narrow = operations / time_s(
        lambda: torch._scaled_mm(c, d, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    )
    return Ceilings(copy / 1e12, wide / 1e12, narrow / 1e12)


def limit_tokens_s(load: Load, built: Built, weight_bytes: int, ceilings: Ceilings) -> float:
    """Output tokens per second when only memory, and for prompts only arithmetic, takes time."""
    card = built.card
    cache = card.kv_cache
    item = 1 if cache.dtype == "float8_e4m3fn" else 2
    kv_bytes = 2 * cache.num_layers * cache.num_kv_heads * cache.head_dim * item
    # The embedding is looked up, not read.
    read = weight_bytes - card.model.vocab_size * card.model.hidden_size * 2
    length = load.input_tokens + load.output_tokens / 2
    step_s = (read + load.concurrency * length * kv_bytes) / (ceilings.copy_tb_s * 1e12)
    rate = ceilings.fp8_tflop_s if card.quantization.algorithm == "fp8" else ceilings.bf16_tflop_s
    prompts_s = load.requests * load.input_tokens * 2 * count_products(card) / (rate * 1e12)
    steps = load.requests / load.concurrency * load.output_tokens
    return load.requests * load.output_tokens / (steps * step_s + prompts_s)


@dataclass(frozen=True)
class Run:
    """Output tokens per second, prompts included, and the median time from one step's tokens to the next one's."""

    tokens_s: float
    step_ms: float


def run_load(engine: DeviceEngine, load: Load, seed: int) -> Run:
    """Run all requests of a load once, with prompts of their own."""
    generator = torch.Generator().manual_seed(seed)
    params = SamplingParams(max_tokens=load.output_tokens, temperature=0.0, ignore_eos=True)
    prompts = torch.randint(0, 100_000, (load.requests, load.input_tokens), generator=generator).tolist()
    requests = [engine.make_request(prompt, params) for prompt in prompts]
    torch.cuda.synchronize()
    started = time.perf_counter()
    waiting = iter(requests)
    for request in [next(waiting) for _ in range(load.concurrency)]:
        engine.add_request(request)
    ends = []
    while engine.has_work:
        outputs = engine.step()
        ends.append(time.perf_counter())
        for output in outputs:
            if output.finish_reason is not None and (request := next(waiting, None)) is not None:
                engine.add_request(request)
    seconds = time.perf_counter() - started
    engine.check_integrity()
    step_s = statistics.median(after - before for before, after in itertools.pairwise(ends))
    return Run(load.requests * load.output_tokens / seconds, step_s * 1000)


def profile_steps(engine: DeviceEngine, load: Load) -> list[dict[str, Any]]:
    """Where the device's time goes in the steps of a short run: kernels by name, longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run_load(engine, load.shorten(waves=1), seed=3)
        torch.cuda.synchronize()
    rows = [
        {"kernel": event.key[:80], "calls": event.count, "ms": round(event.self_device_time_total / 1000, 3)}
        for event in seen.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:12]


def measure_format(name: str, built: Built, ceilings: Ceilings, *, with_profiles: bool) -> list[dict[str, Any]]:
    """All loads of one engine; `with_profiles` of its steps where a goal is missed."""
    weights = make_weights(built.card)
    size = sum(tensor.nbytes for tensor in weights.values())
    blocks = LIMITS.max_batch_size * -(-LIMITS.max_seq_len // built.card.kv_cache.tokens_per_block) + 1
    engine = load_engine(built, weights, blocks)
    rows = []
    for load in LOADS:
        # Requests that come while others decode make steps of sizes of their own.
        run_load(engine, load.shorten(waves=2), seed=1)
        runs = [run_load(engine, load, seed=2 + repeat) for repeat in range(load.repeats)]
        figures = [run.tokens_s for run in runs]
        limit = limit_tokens_s(load, built, size, ceilings)
        found, goal = statistics.median(figures), load.goals.get(name)
        row = {"load": load.name, "format": name, "tokens_s": round(found, 1), "goal": goal, "limit": round(limit, 1)}
        row |= {"share_of_limit": round(found / limit, 3), "runs": [round(figure, 1) for figure in figures]}
        row["step_ms"] = round(statistics.median(run.step_ms for run in runs), 3)
        if with_profiles and goal is not None and found < goal:
            row["profile"] = profile_steps(engine, load)
        rows.append(row)
        share = f"{found / limit:.0%} of the limit {limit:,.0f}"
        print(f"{name:8} {load.name:40} {found:9,.0f} tok/s, {share}; {describe_goal(found, goal)}", flush=True)
    del engine, weights
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def describe_goal(found: float, goal: float | None) -> str:
    """Whether a figure reaches its goal, in words."""
    return "no goal" if goal is None else f"goal {goal:,.0f} {'reached' if found >= goal else 'missed'}"


def describe_machine() -> dict[str, str]:
    """What the figures were measured with."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": version("triton"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


class Parts:
    """How long each part of the benchmark takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Take the time of a part, and say it."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)
        print(f"part {name}: {self.seconds[name]} s", flush=True)


def build_engines(names: Sequence[str], folder: Path, num_layers: int) -> dict[str, Built]:
    """Engines of all formats, built side by side."""
    with ThreadPoolExecutor(len(names)) as pool:
        engines = list(pool.map(lambda name: build_engine(name, folder, num_layers), names))
    for name, engine in zip(names, engines, strict=True):
        print(f"{name:8} built in {engine.seconds:.0f} s: {'; '.join(engine.log)}", flush=True)
    return dict(zip(names, engines, strict=True))


def measure(
    names: Sequence[str], num_layers: int, *, with_start: bool, with_profiles: bool
) -> Iterator[dict[str, Any]]:
    """The content of the file of figures, as far as it is known: each time something is added, all of it."""
    parts, rows = Parts(), list[dict[str, Any]]()
    with parts.time("ceilings"):
        ceilings = measure_ceilings()
    print(
        f"copy {ceilings.copy_tb_s:.2f} TB/s, "
        f"bf16 {ceilings.bf16_tflop_s:.0f} and fp8 {ceilings.fp8_tflop_s:.0f} TFLOP/s",
        flush=True,
    )
    result = {"machine": describe_machine(), "layers": num_layers, "ceilings": asdict(ceilings)}
    with tempfile.TemporaryDirectory() as folder:
        with parts.time("builds"):
            built = build_engines(names, Path(folder), num_layers)
        result["builds"] = {one: {"seconds": round(it.seconds, 1), "log": list(it.log)} for one, it in built.items()}
        result |= {"rows": rows, "start": None, "parts_s": parts.seconds}
        yield result
        if with_start:
            with parts.time("start"):
                start = result["start"] = measure_start(built[names[0]])
            print(f"start to first token: {start['seconds']} s, {start['parts']}", flush=True)
            yield result

        for name, engine in built.items():
            with parts.time(f"measuring {name}"):
                rows += measure_format(name, engine, ceilings, with_profiles=with_profiles)
            yield result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--layers", type=int, default=32, help="layers of the model; 32 is the published shape")
    parser.add_argument("--no-start", action="store_true", help="leave out the start from a file of weights")
    parser.add_argument(
        "--profile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="kernels of the steps of loads that miss their goal",
    )
    parser.add_argument("--formats", default=",".join(FORMATS), help="number formats, with commas between them")
    options = parser.parse_args()
    names = options.formats.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        parser.error(f"there is no format {unknown[0]}; there are {', '.join(FORMATS)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    figures = measure(names, options.layers, with_start=not options.no_start, with_profiles=options.profile)
    for result in figures:
        # Written each time, so that a part that fails or takes too long does not take the others' figures with it.
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
