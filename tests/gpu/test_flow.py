"""A small recipe through all steps on a GPU: quantized there, compiled, checked, measured, packaged, served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    (folder / "recipe.yaml").write_text(RECIPE)
    apply(folder)
    return folder


def apply(folder: Path) -> dict[str, object]:
    command = [sys.executable, "-c", "from trtx.cli.main import run; run()", "apply", "recipe.yaml", "-o", "json"]
    environment = {**os.environ, "TRTX_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_second_apply_finds_everything_in_the_cache(applied: Path) -> None:
    rows = apply(applied)["status"]
    assert isinstance(rows, list)
    assert len(rows) == 7
    assert {row["state"] for row in rows} == {"cached"}


def test_the_packaged_engine_generates_in_flight_and_alone_the_same(applied: Path) -> None:
    from trtx.llm import LLM
    from trtx.runtime.params import SamplingParams

    llm = LLM(applied / "out" / "tiny-gpu" / "h200" / "fp8")
    prompts = [f"Return the {number} of" for number in range(12)]
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    alone = [llm.generate([prompt], params)[0].outputs[0].token_ids for prompt in prompts]
    # Products of other shapes round in another order, a random model's logits are close to one another, and after one
    # token that differs so do all others: what is compared is how the answers begin.
    begin_alike = sum(mine[:2] == theirs[:2] for mine, theirs in zip(together, alone, strict=True))
    assert begin_alike >= 9
    drawn = llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0.9, top_p=0.9, seed=3))
    assert all(output.outputs[0].token_ids for output in drawn)
