"""Times what people wait for: `trtx --help`, an `apply` with nothing to do, and planning a large recipe.

    python benchmarks/control_plane.py [--runs 7] [--cache FOLDER] [--json]

Wall times in milliseconds. Beside them stand a bare interpreter and the import of the libraries that any such
program loads, on the same machine in the same minute, so that the figures can be compared between machines.
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

import yaml

ROOT = Path(__file__).resolve().parents[1]
TRTX = str(Path(sys.executable).with_name("trtx"))
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
ALGORITHMS = ("none", "fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq")
# Steps per target that no other target shares: build, benchmark and package of every variant.
NUM_TARGETS = 1000 // (3 * len(ALGORITHMS)) + 1


@dataclass(frozen=True)
class Timing:
    """One line of the report; `limit_ms` is what the project promises, for the reader to compare."""

    what: str
    min_ms: float
    median_ms: float
    runs: int
    limit_ms: float | None = None


def measure(what: str, runs: int, call: Callable[[], object], limit_ms: float | None = None) -> Timing:
    """Time `runs` calls after one that fills the caches of the operating system."""
    call()
    times_ms = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - start) * 1000)
    return Timing(what, min(times_ms), statistics.median(times_ms), runs, limit_ms)


def run(*command: str, folder: Path, cache: Path) -> None:
    """Run a command to its end, in a folder of its own. Raises CalledProcessError with its output shown."""
    environment = os.environ | {"TRTX_CACHE_DIR": str(cache)}
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(answer.stdout, answer.stderr, sep="\n", file=sys.stderr)
        answer.check_returncode()


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


def time_planning(folder: Path, cache: Path, runs: int) -> list[Timing]:
    """Planning as a function of loaded facts, and as a command that also reads them and asks the cache."""
    from trtx.plan.facts import gather_facts
    from trtx.plan.make import Options, make_plan
    from trtx.plan.resolve import resolve_sources
    from trtx.plan.steps import Plan
    from trtx.recipe.load import load_recipe

    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump(large_recipe(), sort_keys=False))
    cells = load_recipe(path).cells()
    sources = resolve_sources(cells, os.environ)
    facts = gather_facts(os.environ, sources.generators())

    def plan() -> Plan:
        return make_plan(cells, path, sources, facts, Options())

    def command() -> None:
        run(TRTX, "-q", "plan", str(path), folder=folder, cache=cache)

    steps = f"{len(plan().steps):,} steps"
    return [measure(f"make a plan of {steps}", runs, plan), measure(f"trtx plan of {steps}", runs, command)]


def measure_all(runs: int, cache: Path) -> list[Timing]:
    with tempfile.TemporaryDirectory(prefix="trtx-benchmark-") as name:
        folder = Path(name)

        def start(*command: str) -> Callable[[], object]:
            return lambda: run(*command, folder=folder, cache=cache)

        quickstart = start(TRTX, "-q", "apply", str(QUICKSTART))
        quickstart()  # Fills the cache when it is empty: minutes.
        bare = start(sys.executable, "-c", "pass")
        peers = start(sys.executable, "-c", "import typer, pydantic, yaml")
        return [
            measure("python -c pass", runs, bare),
            measure("python -c 'import typer, pydantic, yaml'", runs, peers),
            measure("trtx --help", runs, start(TRTX, "--help"), limit_ms=120),
            measure("trtx apply recipes/quickstart.yaml, nothing to do", runs, quickstart, limit_ms=350),
            *time_planning(folder, cache, runs),
        ]


def format_table(timings: list[Timing]) -> str:
    lines = ["| what | min ms | median ms | promised ms |", "|---|---:|---:|---:|"]
    for timing in timings:
        promised = f"{timing.limit_ms:.0f}" if timing.limit_ms is not None else ""
        lines.append(f"| {timing.what} | {timing.min_ms:.0f} | {timing.median_ms:.0f} | {promised} |")
    return "\n".join(lines)


def main() -> None:
    from trtx.paths import cache_dir

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="measured calls of each kind (default 7)")
    parser.add_argument("--cache", type=Path, default=cache_dir(os.environ), help="cache folder of the quickstart")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    timings = measure_all(options.runs, options.cache.absolute())
    print(json.dumps([asdict(timing) for timing in timings], indent=2) if options.json else format_table(timings))


if __name__ == "__main__":
    main()
