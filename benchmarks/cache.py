"""Times the cache: checking it, taking large files out of it, listing and planning against many entries, and torture.

    python benchmarks/cache.py [--folder FOLDER] [--size 4GiB] [--entries 10000] [--json]

Everything is compared with something measured in the same run, so that the ratios hold on any machine: hashing with
`sha256sum` on one core, 4 GB entries with 4 MB ones. Verification is timed with the files in the page cache, which
needs as much free memory as --size. System calls are counted with strace where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.files import link_or_copy, sha256_bytes
from trtx.recipe.units import format_bytes, parse_bytes

ROOT = Path(__file__).resolve().parents[1]
TRTX = str(Path(sys.executable).with_name("trtx"))
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
RUNS = 7
# The files of the verified entry: unequal, as engines and weights are.
SHARES = (0.4, 0.3, 0.1, 0.1, 0.05, 0.05)


@dataclass(frozen=True)
class Figure:
    """One line of the report; `promise` is what the project says about it."""

    what: str
    value: float
    unit: str
    promise: str = ""
    note: str = ""


def clock(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def make_store(folder: Path) -> Store:
    store = Store(folder)
    store.prepare()
    return store


def publish(store: Store, key: str, sizes: Mapping[str, int]) -> None:
    """Publish an entry of files with random content of the given sizes in bytes."""
    with store.stage(key) as folder:
        for name, size in sizes.items():
            block = os.urandom(min(size, 1 << 20))
            with (folder / "output" / name).open("wb") as stream:
                for start in range(0, size, 1 << 20):
                    stream.write(block[: size - start])
        made = {"recipe": "benchmark", "host": "here", "started": time.time(), "duration_s": 1.0}
        store.publish(folder, Manifest(key, "build/cpu/fp32", "build", {"stage": "build"}, (), made, {}))


def measure_verify(folder: Path, size: int) -> list[Figure]:
    """Throughput of `cache verify` against sha256sum and openssl, each on one core, in alternation."""
    store = make_store(folder / "large")
    key = sha256_bytes(b"large")
    publish(store, key, {f"file-{number}": int(size * share) for number, share in enumerate(SHARES)})
    files = [str(path) for path in sorted(store.output(key).iterdir())]
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    peers = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "sha256"]}
    environ = os.environ | {"TRTX_CACHE_DIR": str(store.root)}
    times: dict[str, list[float]] = {"trtx": [], **{name: [] for name in peers if shutil.which(name)}}
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)  # Into the page cache.
    reported = 0.0
    for _ in range(3):
        for name in times:
            if name == "trtx":
                answer = subprocess.run(
                    [TRTX, "cache", "verify", "-o", "json"], env=environ, capture_output=True, check=True
                )
                reported = json.loads(answer.stdout)["seconds"]
                times[name].append(reported)
            else:
                argv = [*one_core, *peers[name], *files]
                times[name].append(
                    clock(functools.partial(subprocess.run, argv, stdout=subprocess.DEVNULL, check=True))
                )
    rates = {name: size / min(found) for name, found in times.items()}
    figures = [Figure(f"{name}, one core", rate / 1e9, "GB/s") for name, rate in rates.items() if name != "trtx"]
    figures.append(Figure(f"cache verify, {len(os.sched_getaffinity(0))} cores", rates["trtx"] / 1e9, "GB/s"))
    for name in rates.keys() - {"trtx"}:
        promise = "at least 1.8" if name == "sha256sum" else ""
        figures.append(Figure(f"cache verify / {name}", rates["trtx"] / rates[name], "×", promise))
    figures.append(
        Figure("peak memory of cache verify", peak_memory(environ, "cache", "verify") / 2**20, "MiB", "flat")
    )
    empty = environ | {"TRTX_CACHE_DIR": str(folder / "none")}
    figures.append(Figure("the same, of an empty cache", peak_memory(empty, "cache", "verify") / 2**20, "MiB"))
    return figures


def peak_memory(environ: Mapping[str, str], *words: str) -> int:
    """Largest resident set of a command, in bytes; getrusage(2) of a child of its own counts KiB."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], capture_output=True, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    answer = subprocess.run([sys.executable, "-c", script, TRTX, *words], env=environ, capture_output=True, check=True)
    return int(answer.stdout) * 1024


def measure_taking_out(folder: Path, size: int) -> list[Figure]:
    """Taking an entry out of the cache: a large one against a small one, each with one file."""
    store = make_store(folder / "out")
    sizes = {"small": 4 << 20, "large": size}
    for name, num_bytes in sizes.items():
        publish(store, sha256_bytes(name.encode()), {"engine": num_bytes})
    times: dict[str, list[float]] = {name: [] for name in sizes}
    how = ""
    for number in range(200):
        for name, found in times.items():
            source, target = store.output(sha256_bytes(name.encode())) / "engine", folder / "taken" / f"{name}-{number}"
            began = time.perf_counter()
            how = link_or_copy(source, target)
            found.append(time.perf_counter() - began)
    medians = {name: statistics.median(found) * 1e6 for name, found in times.items()}
    return [
        Figure(f"taking out {format_bytes(sizes['small'])}", medians["small"], "µs", note=how),
        Figure(f"taking out {format_bytes(size)}", medians["large"], "µs", note=how),
        Figure("large / small", medians["large"] / medians["small"], "×", "1, within noise"),
    ]


def make_many(store: Store, count: int) -> None:
    """Entries as publishing leaves them, without the flushing that would make this take minutes."""
    body = os.urandom(100)
    for number in range(count):
        key = sha256_bytes(f"entry-{number}".encode())
        output = store.output(key)
        output.mkdir(parents=True)
        files = []
        for name in ("engine.json", "decode.pt2", "prefill.pt2", "check.json"):
            (output / name).write_bytes(body)
            files.append([name, len(body), sha256_bytes(body)])
        made = {"recipe": f"recipe-{number % 20}", "host": "here", "started": time.time() - number, "duration_s": 60.0}
        factors = {"stage": "build", "params": {f"parameter-{index}": index for index in range(40)}}
        manifest = Manifest(key, f"build/gpu-{number % 7}/fp8", "build", factors, (), made, {})
        text = json.loads(manifest.dump()) | {"files": files}
        (store.entry(key) / "manifest.json").write_text(json.dumps(text))
    moment = time.time() - 60
    for shard in store.shards():
        os.utime(store.root / "entries" / shard, (moment, moment))


def measure_listing(folder: Path, count: int) -> list[Figure]:
    """`cache ls` and the planning of a recipe against many entries, with and without them."""
    store = make_store(folder / "many")
    make_many(store, count)
    environ = os.environ | {"TRTX_CACHE_DIR": str(store.root)}
    empty = os.environ | {"TRTX_CACHE_DIR": str(folder / "few")}
    listing = [TRTX, "cache", "ls", "-o", "json"]
    planning = [TRTX, "plan", str(QUICKSTART), "-o", "json"]
    first = run_ms(listing, environ, folder, runs=1)
    seconds = statistics.median(run_ms(listing, environ, folder)) / 1000
    run_ms(planning, environ, folder, runs=1), run_ms(planning, empty, folder, runs=1)
    with_many, with_none = run_ms(planning, environ, folder), run_ms(planning, empty, folder)
    figures = [
        Figure(f"cache ls of {count} entries, the first time", first[0] / 1000, "s", "under 1"),
        Figure(f"cache ls of {count} entries", seconds, "s", "under 1"),
        Figure(f"plan beside {count} entries", statistics.median(with_many), "ms"),
        Figure("plan beside none", statistics.median(with_none), "ms"),
    ]
    for name, argv in (("cache ls", listing), ("plan", planning)):
        inside = count_calls(argv, environ, folder, store.root)
        if inside is not None:
            figures.append(Figure(f"system calls of {name} inside the cache", inside, "", f"{count} entries"))
    return figures


def run_ms(argv: list[str], environ: Mapping[str, str], folder: Path, runs: int = RUNS) -> list[float]:
    def call() -> None:
        subprocess.run(
            argv, env=dict(environ), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )

    return [clock(call) * 1000 for _ in range(runs)]


def count_calls(argv: list[str], environ: Mapping[str, str], folder: Path, cache: Path) -> int | None:
    """System calls that name a path inside the cache, or use a descriptor of one; None without strace."""
    if shutil.which("strace") is None:
        return None
    log = folder / "strace.txt"
    traced = ["strace", "-f", "-y", "-s", "400", "-o", str(log), *argv]
    subprocess.run(traced, env=dict(environ), cwd=folder, capture_output=True, check=True)
    pattern = re.compile(rf"{re.escape(str(cache))}[/\">]")
    return sum(bool(pattern.search(line)) for line in log.read_text(errors="replace").splitlines())


def measure_torture(folder: Path) -> list[Figure]:
    """One seed of the torture test."""
    script = ROOT / "tests" / "cache" / "torture.py"
    answer = subprocess.run(
        [sys.executable, str(script), str(folder / "torture"), "1"], capture_output=True, check=True
    )
    report = json.loads(answer.stdout)
    operations = sum(report["operations"].values())
    note = f"{report['processes']} processes, {operations} operations in {report['seconds']} s; " + ", ".join(
        f"{count} {name}" for name, count in report["outcomes"].items()
    )
    return [Figure("problems under torture", sum(map(len, report["problems"].values())), "", "0", note)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when left out")
    parser.add_argument("--size", type=parse_bytes, default=4 << 30, help="of the large entry")
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        figures = measure_taking_out(folder, asked.size)
        figures += measure_verify(folder, asked.size)
        figures += measure_listing(folder, asked.entries)
        figures += measure_torture(folder)
    if asked.json:
        print(json.dumps({"schema": "trtx.benchmark.cache/v1", "figures": [asdict(figure) for figure in figures]}))
        return
    for figure in figures:
        promise = f"  [{figure.promise}]" if figure.promise else ""
        note = f"  ({figure.note})" if figure.note else ""
        print(f"{figure.what:45} {figure.value:10.3f} {figure.unit:5}{promise}{note}")


if __name__ == "__main__":
    main()
