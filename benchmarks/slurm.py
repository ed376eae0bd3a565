"""What the Slurm runner costs: `python benchmarks/slurm.py`, on private clusters of this machine.

Prints sbatch calls of a run, questions a minute while it waits, processor time of the driver for 1,000 jobs, and the
time from a job's end to its dependent's start beside plain `sbatch --dependency`.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.slurm import Cluster, missing_programs, wait_until
from support.slurm_runs import Run

from trtx.runners.slurm.commands import Answer, LocalShell
from trtx.runners.slurm.options import Resources, Timing

CHAIN = 8
SMALL = Resources(cpus=1, memory_bytes=20 << 20)
WAIT_S = 60.0


@dataclass
class CountingShell:
    """Passes commands on and notes when which was called."""

    inner: LocalShell
    calls: list[tuple[float, str]] = field(default_factory=list)

    def call(self, argv: Any, *, timeout_s: float, exported: Any = None) -> Answer:
        self.calls.append((time.monotonic(), argv[0]))
        return self.inner.call(argv, timeout_s=timeout_s, exported=exported)

    def number(self, program: str) -> int:
        return sum(name == program for _, name in self.calls)


@contextlib.contextmanager
def private_cluster(**options: Any) -> Iterator[tuple[Cluster, Path]]:
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="trtx-slurm-", dir="/tmp")), **options)
    with tempfile.TemporaryDirectory() as folder:
        try:
            cluster.start()
            yield cluster, Path(folder)
        finally:
            cluster.stop()


def measure_run(cluster: Cluster, folder: Path) -> dict[str, float]:
    """Three stages of 1,000 cells that wait a minute, at the runner's ordinary pace, and are cancelled."""
    run = Run(folder / "run", timing=Timing())
    cells = range(1000)
    groups = [
        run.group("convert", {f"convert-{cell}": () for cell in cells}, resources=replace(SMALL, partition="cpu")),
        run.group("build", {f"build-{cell}": (f"convert-{cell}",) for cell in cells}, resources=SMALL),
        run.group("bench", {f"bench-{cell}": (f"build-{cell}",) for cell in cells}, resources=SMALL),
    ]
    cluster.run("scontrol", "update", "partitionname=cpu", "state=down")
    shell = CountingShell(LocalShell(cluster.environ))
    runner = run.runner(shell)
    began, cpu = time.monotonic(), time.process_time()
    runner.submit(groups)
    submitted, cpu_submitted = time.monotonic() - began, time.process_time() - cpu
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - began < WAIT_S:
        runner.poll(5)
    waited = time.process_time() - cpu
    stamps = [stamp for stamp, name in shell.calls if name != "sbatch"]
    most = max(sum(first <= stamp < first + 60 for stamp in stamps) for first in stamps)
    runner.cancel()
    return {
        "stages": len(groups),
        "tasks": 3 * len(cells),
        "sbatch_calls": shell.number("sbatch"),
        "submit_s": round(submitted, 2),
        "submit_cpu_s": round(cpu_submitted, 2),
        "questions_a_minute_at_most": most,
        "driver_cpu_s_a_minute_of_waiting": round(waited * 60 / WAIT_S, 2),
    }


def measure_thousand(cluster: Cluster, folder: Path) -> dict[str, float]:
    """1,000 jobs that run, followed to their end."""
    run = Run(folder / "many", timing=Timing())
    group = run.group("build", {f"build-{n}": () for n in range(1000)}, resources=SMALL, throttle=20)
    runner = run.runner(cluster)
    began, cpu = time.monotonic(), time.process_time()
    runner.submit([group])
    run.follow(runner, seconds=600)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    return {"jobs": 1000, "wall_s": round(wall, 1), "driver_cpu_s": round(cpu, 2), "questions": runner.questions}


def measure_gaps(cluster: Cluster, folder: Path) -> dict[str, float]:
    """Seconds from a job's end to its dependent's start, by the record each job writes."""
    run = Run(folder / "chain")
    groups = [run.group(f"g{n}", {f"s{n}": (f"s{n - 1}",) if n else ()}, resources=SMALL) for n in range(CHAIN)]
    runner = run.runner(cluster)
    runner.submit(groups)
    run.follow(runner)
    ours = []
    for number in range(1, CHAIN):
        end = json.loads((run.folder / f"steps/s{number - 1}/attempts/1/end.json").read_bytes())["time"]
        start = json.loads((run.folder / f"steps/s{number}/claims/1.json").read_bytes())["time"]
        ours.append(start - end)
    return {"trtx_s": round(statistics.median(ours), 3), "plain_sbatch_s": round(plain_gap(cluster, folder), 3)}


def plain_gap(cluster: Cluster, folder: Path) -> float:
    """The same chain of jobs that write the time when they start and when they end."""
    script = folder / "plain.sh"
    script.write_text(f"#!/bin/bash\ndate +%s.%N >> {folder}/plain\ndate +%s.%N >> {folder}/plain\n")
    job = ""
    for _ in range(CHAIN):
        words = [
            "sbatch",
            "--parsable",
            "--output=/dev/null",
            "--mem=20M",
            *([f"--dependency=afterok:{job}"] if job else []),
        ]
        job = cluster.run(*words, str(script), check=True).stdout.strip()
    wait_until(lambda: not cluster.jobs(), "the chain is done")
    times = [float(line) for line in (folder / "plain").read_text().split()]
    return statistics.median(times[2 * n] - times[2 * n - 1] for n in range(1, CHAIN))


def main() -> None:
    if reason := missing_programs():
        sys.exit(f"no cluster can be started here: {reason}")
    results: dict[str, Any] = {"cpus": os.cpu_count()}
    with private_cluster() as (cluster, folder):
        results["end_to_dependent_start"] = measure_gaps(cluster, folder)
        results["waiting"] = measure_run(cluster, folder)
    with private_cluster(speed=10) as (cluster, folder):
        results["thousand"] = measure_thousand(cluster, folder)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
