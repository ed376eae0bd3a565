"""A small recipe through all steps on a GPU, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = """\
schema: trtx/v1
name: tiny-gpu
model: {source: "random://llama-tiny"}
quantization:
  fp8: {algorithm: fp8, kv_cache: fp8, calibration: {samples: 32, heldout: 8, max_length: 128}}
engine:
  limits: {max_batch_size: 16, max_num_tokens: 512, max_seq_len: 256}
targets:
  h200: {gpu: h200-sxm-141gb}
benchmark:
  workloads: {chat: {input_tokens: 64, output_tokens: 32, concurrency: [1, 16]}}
  repeats: 1
"""
# Where `trtx apply` puts the package of the only cell.
PACKAGE = Path("out", "tiny-gpu", "h200", "fp8")


def trtx(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, with a cache of its own there; say how long it took."""
    command = [sys.executable, "-m", "trtx.cli", *arguments]
    environment = {**os.environ, "TRTX_CACHE_DIR": str(folder / "cache")}
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    print(f"trtx {' '.join(arguments)}: {done.returncode} after {time.monotonic() - began:.0f} s", flush=True)
    return done


def apply(folder: Path) -> list[dict[str, Any]]:
    """Apply the recipe in `folder`; the rows of its steps."""
    (folder / "recipe.yaml").write_text(RECIPE)
    done = trtx(folder, "apply", "recipe.yaml", "-o", "json")
    assert done.returncode == 0, done.stderr[-5000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout)["status"]
    return rows
