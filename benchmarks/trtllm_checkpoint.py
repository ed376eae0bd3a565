"""Times the writer of TensorRT-LLM checkpoints beside a plain copy of the same folder by the safetensors library.

    python benchmarks/trtllm_checkpoint.py [--folder FOLDER] [--layers 22] [--tensor 2] [--runs 3] [--json]

The model is a random Llama of 1.1 billion parameters (22 layers), read from the page cache. Both sides write to FOLDER
and sync to the disk; times are the least of all runs, in seconds and in bytes of the source per second. CPU seconds say
most on a machine that is busy with something else. Every run is a process of its own, which samples its anonymous
memory; mapped files are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.write import convert_folder
from trtx.backends.tensorrt_llm.spec import Ranks

# TinyLlama's.
HIDDEN, MIDDLE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 5632, 32, 4, 64, 32000
FORMATS = {"none": None, "fp8": "FP8", "int4_awq": "W4A16_AWQ"}
SAMPLE_S = 0.005
# Threads that spin while they wait would count as work.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Row:
    """One way through one folder. `beside` is the plain copy's."""

    format: str
    source_gb: float
    seconds: float
    gb_per_s: float
    cpu_s: float
    peak_mb: float
    beside_s: float
    beside_cpu_s: float
    beside_peak_mb: float


def make_folder(folder: Path, algorithm: str, layers: int) -> None:
    """A random Llama in shards of a layer, in the layout of ModelOpt's unified export."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if FORMATS[algorithm]:
        facts = {"quant_algo": FORMATS[algorithm], "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
        facts |= {"group_size": 128} if algorithm == "int4_awq" else {}
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": facts}))
    index: dict[str, str] = {}
    for number, tensors in enumerate(make_shards(algorithm, layers)):
        name = f"model-{number:05}.safetensors"
        save_file(tensors, folder / name)
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def make_shards(algorithm: str, layers: int) -> Iterator[dict[str, Tensor]]:
    yield {f"{name}.weight": bf16(VOCAB, HIDDEN) for name in ("model.embed_tokens", "lm_head")}
    yield {"model.norm.weight": bf16(HIDDEN)}
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for layer in range(layers):
        here = f"model.layers.{layer}"
        found = {f"{here}.{name}.weight": bf16(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, n, k in (
            ("self_attn.q_proj", q, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, q),
            ("mlp.gate_proj", MIDDLE, HIDDEN),
            ("mlp.up_proj", MIDDLE, HIDDEN),
            ("mlp.down_proj", HIDDEN, MIDDLE),
        ):
            found |= {f"{here}.{name}.{part}": value for part, value in make_matrix(algorithm, name, n, k).items()}
        yield found


def make_matrix(algorithm: str, name: str, n: int, k: int) -> dict[str, Tensor]:
    if algorithm == "fp8":
        scale = torch.tensor(0.01 if name.endswith("q_proj") else 0.008)
        return {"weight": bf16(n, k).to(torch.float8_e4m3fn), "weight_scale": scale, "input_scale": torch.tensor(0.02)}
    if algorithm == "int4_awq":
        found = {
            "weight": torch.randint(0, 256, (n // 2, k), dtype=torch.uint8),
            "weight_scale": torch.rand(n, k // 128),
        }
        return found | ({"pre_quant_scale": torch.rand(k)} if name.endswith(("o_proj", "down_proj")) else {})
    return {"weight": bf16(n, k)}


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16)


def copy_plainly(source: Path, output: Path) -> None:
    """Each shard read and written by the safetensors library, and synced."""
    output.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        save_file(load_file(path), output / path.name)
        descriptor = os.open(output / path.name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def run_here(way: str, source: Path, output: Path, tensor: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and the peak of anonymous memory in MB above what the imports took."""
    work: Callable[[], object] = lambda: copy_plainly(source, output)  # noqa: E731
    if way == "convert":
        work = lambda: convert_folder(  # noqa: E731
            source, output, release="1.2.1", ranks=Ranks(tensor=tensor), dtype="bfloat16"
        )
    with peak_memory() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - start, time.process_time() - cpu, max(peak) - peak[0]


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Samples of this process's anonymous memory in MB, the first from before."""
    samples, done = [anonymous_mb()], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            samples.append(anonymous_mb())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(way: str, source: Path, output: Path, tensor: int, runs: int) -> tuple[float, float, float]:
    """The least times and the largest peak of several processes."""
    found = []
    for _ in range(runs):
        argv = [sys.executable, __file__, "--here", way, str(source), str(output), "--tensor", str(tensor)]
        found.append(
            json.loads(
                subprocess.run(argv, env={**os.environ, **QUIET}, check=True, capture_output=True, text=True).stdout
            )
        )
        shutil.rmtree(output)
    seconds, cpu, peaks = zip(*found, strict=True)
    return min(seconds), min(cpu), max(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; the folder for temporary files")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--tensor", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", nargs=3, metavar=("WAY", "SOURCE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        way, source, output = arguments.here
        print(json.dumps(run_here(way, Path(source), Path(output), arguments.tensor)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for algorithm in FORMATS:
            source, output = Path(folder, algorithm), Path(folder, "out")
            make_folder(source, algorithm, arguments.layers)
            size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
            beside, beside_cpu, beside_peak = measure("copy", source, output, arguments.tensor, arguments.runs)
            seconds, cpu, peak = measure("convert", source, output, arguments.tensor, arguments.runs)
            rows.append(Row(algorithm, size, seconds, size / seconds, cpu, peak, beside, beside_cpu, beside_peak))
            shutil.rmtree(source)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    heads = (("source", 8), ("convert", 9), ("GB/s", 6), ("CPU", 8), ("peak", 8), ("copy", 8), ("CPU", 8), ("peak", 7))
    print(f"{'format':10}", *(f"{head:>{width}}" for head, width in heads))
    for row in rows:
        print(
            f"{row.format:10} {row.source_gb:5.2f} GB {row.seconds:7.2f} s {row.gb_per_s:6.2f} {row.cpu_s:6.2f} s"
            f" {row.peak_mb:5.0f} MB {row.beside_s:6.2f} s {row.beside_cpu_s:6.2f} s {row.beside_peak_mb:4.0f} MB"
        )


if __name__ == "__main__":
    main()
