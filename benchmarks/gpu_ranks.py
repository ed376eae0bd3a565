"""Tensor-parallel engines on the GPUs of one host: tokens per second of a Llama-3-8B shape, and how they scale.

    python benchmarks/gpu_ranks.py --out benchmarks/results/h200-ranks.json

Weights are random. Every engine is built, and every one measured, by a process of its own with a limit of time: what
fails or hangs costs its own rows and no others, and the figures found so far are in the file.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch
from gpu import LOADS, describe_machine, run_load
from gpu_engines import LIMITS, make_spec, make_tokenizer, make_weights

from trtx.backends.inductor.build import build
from trtx.errors import TrtxError
from trtx.runtime.card import EngineCard, Rank, load_card
from trtx.runtime.cuda import CudaPrograms
from trtx.runtime.cuda_load import make_programs
from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.rank_programs import load_ranks
from trtx.runtime.ranks import Join

NAMES = ("bf16", "fp8")
REPEATS = 2
BUILD_LIMIT_S, MEASURE_LIMIT_S = 270, 150
# What a process that measures prints before its figures.
MARK = "FIGURES "


def load_random_rank(
    engine: Path, weights: Path, card: EngineCard, num_blocks: int, join: Join | None = None
) -> CudaPrograms:
    """One rank's programs over random weights made on its GPU; every rank has the same numbers."""
    return make_programs(engine, card, make_weights(card), num_blocks, join)


def build_one(folder: Path, name: str, size: int, layers: int) -> None:
    """Compile the engine of a format and a number of ranks, as a build step does."""
    spec = make_spec(name, layers).model_copy(update={"rank": Rank(tensor=size)})
    work = folder.with_suffix(".work")
    for path in (folder, work):
        path.mkdir(parents=True)
    started = time.monotonic()
    build(spec, folder, work, lambda line: print(f"{name} × {size}: {line}", flush=True))
    print(f"{name} × {size}: built in {time.monotonic() - started:.0f} s", flush=True)


def measure_one(folder: Path, name: str, size: int) -> None:
    """Run all loads of one engine and print the figures as one line of JSON."""
    card = load_card(folder)
    blocks = LIMITS.max_batch_size * -(-LIMITS.max_seq_len // card.kv_cache.tokens_per_block) + 1
    started = time.monotonic()
    loader = f"{Path(__file__).stem}:{load_random_rank.__name__}"
    threading.Thread(target=tell_where_ranks_stand, daemon=True).start()
    if size == 1:
        programs: Any = load_random_rank(folder, folder, card, blocks)
    else:
        programs = load_ranks(folder, folder, card, blocks, loader)
    print(f"{name} × {size}: loaded in {time.monotonic() - started:.1f} s", flush=True)
    engine = DeviceEngine(programs, make_tokenizer(card.model.vocab_size))
    figures: dict[str, list[float]] = {}
    for load in LOADS:
        run_load(engine, load.shorten(waves=2), seed=1)
        figures[load.name] = [round(run_load(engine, load, seed=2 + repeat).tokens_s, 1) for repeat in range(REPEATS)]
        print(f"{name} × {size}: {load.name}: {figures[load.name]} tok/s", flush=True)
        print(MARK + json.dumps(figures), flush=True)


def tell_where_ranks_stand() -> None:
    """Shortly before this process is ended, let its ranks say where they are, and print it."""
    time.sleep(MEASURE_LIMIT_S - 15)
    # Opened now: the folder goes with the first rank that ends.
    logs = [path.open(errors="replace") for path in sorted(Path(gettempdir()).glob("trtx-ranks-*/*.log"))]
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            os.kill(pid, signal.SIGABRT)  # faulthandler prints the stacks
    time.sleep(3)
    for log in logs:
        print(f"--- {log.name}\n{log.read()[-3000:]}", flush=True)


def run_part(arguments: list[str], environ: dict[str, str], limit_s: float) -> list[str]:
    """Run this script for one part; its lines, which are printed as well. Raises RuntimeError when it fails."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONFAULTHANDLER": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if not line.startswith(MARK):
            print(line, end="", flush=True)
    code = process.wait()
    timer.cancel()
    if code != 0:
        print(f"{' '.join(arguments)} ended with {code}", flush=True)
        if not any(line.startswith(MARK) for line in lines):
            raise RuntimeError(f"no figures of {' '.join(arguments)}")
    return lines


def rotated(first: int) -> dict[str, str]:
    """All GPUs, another one first: what a build measures its products on."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[(first + at) % count] for at in range(count))}


def build_all(folder: Path, names: list[str], sizes: list[int], layers: int) -> list[tuple[str, int]]:
    """Build side by side; the engines that could be built."""
    wanted = [(name, size) for size in sizes for name in names]

    def build_part(at: int) -> bool:
        name, size = wanted[at]
        arguments = ["--build", str(folder / f"{name}-{size}"), name, str(size), str(layers)]
        try:
            run_part(arguments, rotated(at), BUILD_LIMIT_S)
        except Exception:  # noqa: BLE001 - one engine less
            traceback.print_exc()
            return False
        return (folder / f"{name}-{size}" / "engine.json").is_file()

    with ThreadPoolExecutor(len(wanted)) as pool:
        done = list(pool.map(build_part, range(len(wanted))))
    return [engine for engine, is_built in zip(wanted, done, strict=True) if is_built]


def make_rows(figures: dict[tuple[str, int], dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row for every engine and load: its figure, and its ratio to that of one GPU."""
    rows = []
    for (name, size), loads in sorted(figures.items()):
        for load, runs in loads.items():
            found = round(statistics.median(runs), 1)
            alone = figures.get((name, 1), {}).get(load)
            scaling = round(found / statistics.median(alone), 2) if alone else None
            rows.append(
                {"load": load, "format": name, "gpus": size, "tokens_s": found, "scaling": scaling, "runs": runs}
            )
    return rows


def write(out: Path | None, layers: int, figures: dict[tuple[str, int], dict[str, list[float]]]) -> None:
    """Write what is known so far."""
    result = {"machine": describe_machine(), "gpus": torch.cuda.device_count(), "layers": layers}
    if out is not None:
        out.write_text(json.dumps({**result, "rows": make_rows(figures)}, indent=1) + "\n")


def run_all(names: list[str], sizes: list[int], layers: int, out: Path | None, minutes: float) -> int:
    """Build and measure everything; no engine is started on after so many minutes."""
    started = time.monotonic()
    figures: dict[tuple[str, int], dict[str, list[float]]] = {}
    with TemporaryDirectory() as folder:
        engines = build_all(Path(folder), names, sizes, layers)
        print(f"builds took {time.monotonic() - started:.0f} s", flush=True)
        for name, size in engines:
            if time.monotonic() - started > minutes * 60:
                print(f"{name} × {size}: left out, {minutes:g} minutes are over", flush=True)
                continue
            try:
                lines = run_part(["--measure", f"{folder}/{name}-{size}", name, str(size)], {}, MEASURE_LIMIT_S)
                last = [line for line in lines if line.startswith(MARK)][-1]
                figures[name, size] = json.loads(last.removeprefix(MARK))
            except Exception:  # noqa: BLE001 - one engine less
                traceback.print_exc()
            write(out, layers, figures)
    for row in make_rows(figures):
        ratio = "" if row["scaling"] is None else f", {row['scaling']:.2f} × one GPU"
        print(f"{row['format']:5} {row['gpus']} GPU  {row['load']:40} {row['tokens_s']:9,.0f} tok/s{ratio}", flush=True)
    print(f"all took {time.monotonic() - started:.0f} s", flush=True)
    return 0 if len(figures) == len(sizes) * len(names) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--layers", type=int, default=32, help="layers of the model; 32 is the published shape")
    parser.add_argument("--formats", nargs="+", default=list(NAMES), choices=NAMES, help="number formats")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of GPUs; 1, 2 and 4 as far as there are any")
    parser.add_argument("--minutes", type=float, default=8, help="start measuring no engine after so many minutes")
    parser.add_argument("--build", nargs=4, metavar=("FOLDER", "FORMAT", "SIZE", "LAYERS"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "FORMAT", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    if options.build:
        folder, name, size, layers = options.build
        build_one(Path(folder), name, int(size), int(layers))
        return 0
    if options.measure:
        faulthandler.dump_traceback_later(MEASURE_LIMIT_S - 20)
        folder, name, size = options.measure
        try:
            measure_one(Path(folder), name, int(size))
        except TrtxError as error:
            print(error.render(), flush=True)
            return 1
        return 0
    sizes = options.sizes or [size for size in (1, 2, 4) if size <= torch.cuda.device_count()]
    return run_all(options.formats, sizes, options.layers, options.out, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
