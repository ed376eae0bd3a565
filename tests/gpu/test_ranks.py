"""Tensor-parallel ranks on GPUs of their own beside one GPU: the same logits, and tokens from graphs."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_llama, make_unified
from support.engines import VOCAB_SIZE, make_tokenizer
from support.gpu_flow import trtx
from support.modules import convert_quietly, make_spec, run_in_pieces
from torch import Tensor

from trtx.backends.inductor.build import build
from trtx.errors import TrtxError
from trtx.runtime.card import Limits
from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.params import SamplingParams
from trtx.runtime.program import Programs, load_programs

COUNT = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(COUNT < 2, reason="there are fewer than two GPUs")

SIZES = {
    "vocab_size": 320,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "initializer_range": 0.05,
}
LIMITS = Limits(max_batch_size=16, max_num_tokens=128, max_seq_len=128)
NUM_BLOCKS = 16 * 16 + 1
ALGORITHMS = ("none", "fp8")
RANKS = [size for size in (2, 4) if size <= COUNT]
PROMPTS = [[11 + at, 40, 90 + 3 * at, 7] * (1 + at % 3) for at in range(12)]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Built:
    """The engines of one model, one for each number of ranks: where they and their weights lie."""

    folders: dict[int, Path]

    def load(self, size: int) -> Any:
        folder = self.folders[size]
        return load_programs(folder / "engine", folder / "weights", NUM_BLOCKS)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """All of them, built side by side."""
    folder = tmp_path_factory.mktemp("ranks")
    make_llama(folder / "none", **SIZES)
    make_unified(folder / "fp8", "fp8", kv_cache="fp8", **SIZES)
    built = {name: Built({size: folder / f"{name}-{size}" for size in (1, *RANKS)}) for name in ALGORITHMS}

    def build_one(name: str, size: int, target: Path) -> None:
        config = convert_quietly(folder / name, target / "weights", "bfloat16", size)
        for part in ("engine", "work"):
            (target / part).mkdir()
        spec = make_spec(config, LIMITS).model_copy(update={"arch": "sm_90"})
        build(spec, target / "engine", target / "work", lambda line: print(name, size, line, flush=True))

    with ThreadPoolExecutor() as pool:
        jobs = [(name, size, target) for name, one in built.items() for size, target in one.folders.items()]
        list(pool.map(lambda job: build_one(*job), jobs))
    return built


@pytest.fixture(params=ALGORITHMS)
def built(request: pytest.FixtureRequest, engines: dict[str, Built]) -> Built:
    return engines[request.param]


def ask(programs: Programs) -> Tensor:
    """Logits of prompts in chunks and token by token, [3, 40, V]."""
    tokens = torch.randint(0, VOCAB_SIZE, (3, 40), generator=torch.Generator().manual_seed(0))
    return run_in_pieces(programs, tokens, (9, 21), 6)


def generate(programs: Any, params: SamplingParams) -> list[list[int]]:
    engine = DeviceEngine(programs, make_tokenizer())
    found = [list(one.token_ids) for one in engine.generate(PROMPTS, params)]
    engine.check_integrity()
    return found


@pytest.mark.timeout(360)
@pytest.mark.parametrize("size", RANKS)
def test_ranks_answer_as_one_gpu_does(built: Built, size: int) -> None:
    one = built.load(1)
    expected, alone = ask(one), generate(one, GREEDY)
    del one
    several = built.load(size)
    found = ask(several)
    distance = float((found - expected).norm() / expected.norm())
    print(f"{size} ranks: logits are {distance:.4f} away from those of one GPU", flush=True)
    # Partial sums are rounded to bfloat16; where numbers are then rounded to 8 bits, some take the next step.
    assert distance < (0.1 if several.card.quantization.algorithm == "fp8" else 0.03)
    together = generate(several, GREEDY)
    begin_alike = sum(mine[:4] == theirs[:4] for mine, theirs in zip(together, alone, strict=True))
    print(f"{size} ranks: {begin_alike} of {len(PROMPTS)} answers begin with the same four tokens", flush=True)
    # Logits of a random model are close to one another; one token that differs changes all after it.
    assert begin_alike >= 8
    assert generate(several, GREEDY) == together
    drawn = [generate(several, SamplingParams(max_tokens=24, temperature=0.9, top_p=0.9, seed=3)) for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.timeout(240)
def test_a_rank_that_is_killed_ends_the_engine_within_a_minute(built: Built) -> None:
    programs = built.load(2)
    engine = DeviceEngine(programs, make_tokenizer())
    for prompt in PROMPTS:
        engine.add_request(
            engine.make_request(prompt, SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True))
        )
    for _ in range(5):
        engine.step()
    (pid,) = (process.pid for process in programs._processes._processes.values())
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(TrtxError, match="rank 1 of 2 ended by SIGKILL"):
        while engine.has_work:
            engine.step()
    assert time.monotonic() - started < 60


RECIPE = """\
schema: trtx/v1
name: two-gpus
model: {source: "random://llama-tiny"}
quantization:
  bf16: {algorithm: none, calibration: {samples: 1, heldout: 8, max_length: 128}}
engine:
  limits: {max_batch_size: 8, max_num_tokens: 256, max_seq_len: 256}
targets:
  pair: {gpu: h200-sxm-141gb, parallelism: {tensor: 2}}
benchmark:
  workloads: {chat: {input_tokens: 32, output_tokens: 16, concurrency: [8]}}
  repeats: 1
"""


@pytest.mark.timeout(360)
def test_a_recipe_of_two_gpus_is_built_checked_measured_and_answers(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = trtx(tmp_path, "apply", "recipe.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    from trtx.llm import LLM

    llm = LLM(tmp_path / "out" / "two-gpus" / "pair" / "bf16")
    found = llm.generate(["Return the", "A list of"], SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True))
    assert [len(output.outputs[0].token_ids) for output in found] == [16, 16]
