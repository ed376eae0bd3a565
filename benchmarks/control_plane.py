"""Times what people wait for, beside Snakemake and DVC in the same run: an `apply` with nothing to do, planning a large
recipe, and `trtx --help` beside the import of the libraries that any such program loads.

    python benchmarks/control_plane.py [--runs 7] [--cache FOLDER] [--peers FOLDER] [--json]

Wall times in milliseconds; machines are noisy, so what counts are the ratios: trtx and its peer are called in turn. The
peers are installed from the package index into a virtual environment of their own, and get the graph of the trtx plan
(benchmarks/peers.py). pip compiled them to byte code; a source tree gets that at the first call, which is not measured,
in a folder that is thrown away, also where PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from peers import Peers, read_graph, write_dvc, write_snakemake

ROOT = Path(__file__).resolve().parents[1]
TRTX = str(Path(sys.executable).with_name("trtx"))
IMPORTS = "python -c 'import typer, pydantic, yaml'"
ALGORITHMS = ("none", "fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq")
# Steps per target that no other target shares: build, benchmark and package of every variant.
NUM_TARGETS = 1000 // (3 * len(ALGORITHMS)) + 1
# Of a peer's time.
THIRD = 1 / 3


@dataclass(frozen=True)
class Timing:
    """One line of the report."""

    what: str
    min_ms: float
    median_ms: float
    runs: int


@dataclass(frozen=True)
class Ratio:
    """One median as a part of another, and how much it may be: what the project promises."""

    what: str
    beside: str
    ratio: float
    limit: float


def measure(runs: int, calls: dict[str, Callable[[], object]]) -> list[Timing]:
    """Time `runs` rounds of the calls, in turn so that a busy moment is everybody's, after one that fills caches."""
    times_ms: dict[str, list[float]] = {what: [] for what in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for what, call in calls.items():
            start = time.perf_counter()
            call()
            times_ms[what].append((time.perf_counter() - start) * 1000)
    return [Timing(what, min(times), statistics.median(times), runs) for what, times in times_ms.items()]


def run(*command: str, folder: Path, cache: Path) -> str:
    """Run trtx or Python to its end and return its stdout. Raises CalledProcessError with its output shown."""
    environment = os.environ | {"TRTX_CACHE_DIR": str(cache), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(answer.stdout, answer.stderr, sep="\n", file=sys.stderr)
        answer.check_returncode()
    return answer.stdout


def small_recipe() -> dict[str, object]:
    """Three targets with a variant each: download, rows, three calibrations, and convert, build and package of each."""
    calibration = {"samples": 64, "heldout": 32, "max_length": 128}
    variants = {"fp32": "none", "int8": "int8_wo", "int4": "int4_wo"}
    return {
        "schema": "trtx/v1",
        "name": "small",
        "model": {"source": "demo://tiny-llama"},
        "quantization": {name: {"algorithm": kind, "calibration": calibration} for name, kind in variants.items()},
        "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 256, "max_seq_len": 128}},
        "targets": {f"for-{name}": {"gpu": "cpu", "quantization": [name]} for name in variants},
    }


def large_recipe() -> dict[str, object]:
    """A recipe with about a thousand steps: many targets, each with its own limits, of every variant."""
    return {
        "schema": "trtx/v1",
        "name": "large",
        "model": {"source": "demo://tiny-llama"},
        "quantization": {name.replace("_", "-"): {"algorithm": name} for name in ALGORITHMS},
        "engine": {"limits": {"max_num_tokens": 512, "max_seq_len": 256}},
        "targets": {
            f"cpu-{number}": {"gpu": "cpu", "engine": {"limits": {"max_batch_size": number}}}
            for number in range(1, NUM_TARGETS + 1)
        },
        "benchmark": {"workloads": {"chat": {"input_tokens": 64, "output_tokens": 16, "concurrency": [1, 4]}}},
        "package": {},
    }


def write_recipe(folder: Path, name: str, recipe: dict[str, object]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def time_start(folder: Path, cache: Path, runs: int) -> list[Timing]:
    """Starting Python, starting it with the libraries, and starting trtx."""

    def start(*command: str) -> Callable[[], object]:
        return lambda: run(*command, folder=folder, cache=cache)

    return measure(
        runs,
        {
            "python -c pass": start(sys.executable, "-c", "pass"),
            IMPORTS: start(sys.executable, "-c", "import typer, pydantic, yaml"),
            "trtx --help": start(TRTX, "--help"),
        },
    )


def time_nothing_to_do(folder: Path, cache: Path, peers: Peers, runs: int) -> list[Timing]:
    """The same small pipeline, complete: trtx, Snakemake and DVC find that there is nothing to do."""
    path = write_recipe(folder, "small", small_recipe())
    run(TRTX, "-q", "apply", str(path), folder=folder, cache=cache)  # The first time this builds three engines.
    graph = read_graph(read_plan(path, folder, cache))
    assert len(graph) == 14, sorted(graph)
    snakemake, dvc = folder / "snakemake-small", folder / "dvc-small"
    write_snakemake(snakemake, graph)
    peers.run(snakemake, "snakemake", "--cores", "1", "--quiet", "all")
    write_dvc(dvc, graph)
    peers.run(dvc, "dvc", "init", "--no-scm", "--quiet")
    peers.run(dvc, "dvc", "repro", "--quiet")
    return measure(
        runs,
        {
            "trtx apply, 14 steps done": lambda: run(TRTX, "apply", str(path), folder=folder, cache=cache),
            "snakemake, 14 steps done": lambda: peers.run(snakemake, "snakemake", "--cores", "1"),
            "dvc repro, 14 steps done": lambda: peers.run(dvc, "dvc", "repro"),
        },
    )


def time_planning(folder: Path, cache: Path, peers: Peers, runs: int) -> list[Timing]:
    """Planning a thousand steps of which none is done."""
    from trtx.plan.facts import gather_facts
    from trtx.plan.make import Options, make_plan
    from trtx.plan.resolve import resolve_sources
    from trtx.plan.steps import Plan
    from trtx.recipe.load import load_recipe

    path = write_recipe(folder, "large", large_recipe())
    cells = load_recipe(path).cells()
    sources = resolve_sources(cells, os.environ)
    facts = gather_facts(os.environ, sources.generators())
    empty = folder / "empty-cache"

    def plan() -> Plan:
        return make_plan(cells, path, sources, facts, Options())

    graph = read_graph(read_plan(path, folder, empty))
    snakemake = folder / "snakemake-large"
    write_snakemake(snakemake, graph)
    steps = f"{len(graph):,} steps"
    return measure(
        runs,
        {
            f"making a plan of {steps} (the function)": plan,
            f"trtx plan, {steps}": lambda: run(TRTX, "plan", str(path), folder=folder, cache=empty),
            f"snakemake -n, {steps}": lambda: peers.run(snakemake, "snakemake", "-n", "--quiet", "rules"),
        },
    )


def read_plan(path: Path, folder: Path, cache: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(run(TRTX, "plan", str(path), "-o", "json", folder=folder, cache=cache))
    return plan


def compare(start: list[Timing], nothing: list[Timing], planning: list[Timing]) -> list[Ratio]:
    """What is promised, as ratios of medians."""
    pairs = [
        (start[2], start[1], 1.3),
        (nothing[0], nothing[1], THIRD),
        (nothing[0], nothing[2], THIRD),
        (planning[1], planning[2], THIRD),
    ]
    return [Ratio(a.what, b.what, a.median_ms / b.median_ms, limit) for a, b, limit in pairs]


def format_report(timings: list[Timing], ratios: list[Ratio]) -> str:
    lines = ["| what | min ms | median ms |", "|---|---:|---:|"]
    lines += [f"| {timing.what} | {timing.min_ms:.0f} | {timing.median_ms:.0f} |" for timing in timings]
    lines += ["", "| ratio of medians | is | may be |", "|---|---:|---:|"]
    lines += [f"| {ratio.what} / {ratio.beside} | {ratio.ratio:.2f} | {ratio.limit:.2f} |" for ratio in ratios]
    return "\n".join(lines)


def main() -> None:
    from trtx.paths import cache_dir

    caches = cache_dir(os.environ).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="measured calls of each kind (default 7)")
    parser.add_argument("--cache", type=Path, default=cache_dir(os.environ), help="cache folder of the small pipeline")
    parser.add_argument("--peers", type=Path, default=caches / "trtx-benchmark-peers", help="where peers are installed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    peers, cache = Peers(options.peers.absolute()), options.cache.absolute()
    peers.install()
    with tempfile.TemporaryDirectory(prefix="trtx-benchmark-") as name:
        folder = Path(name)
        start = time_start(folder, cache, options.runs)
        nothing = time_nothing_to_do(folder, cache, peers, options.runs)
        planning = time_planning(folder, cache, peers, options.runs)
    timings, ratios = [*start, *nothing, *planning], compare(start, nothing, planning)
    if options.json:
        print(json.dumps({"timings": [asdict(row) for row in timings], "ratios": [asdict(row) for row in ratios]}))
    else:
        print(format_report(timings, ratios))


if __name__ == "__main__":
    main()
