"""What is left of a GPU's memory goes to the KV cache, and never what a step needs.

The engine has the shape of Llama-3-8B with two of its layers, so that a step takes as much as the whole model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.gpu_flow import PACKAGE
from torch import Tensor

from trtx.errors import EnvironmentProblem
from trtx.runtime.cuda_load import load_program, make_ready, make_sized_programs
from trtx.runtime.cuda_memory import MARGIN_BYTES, CudaMemory, Measured, measure
from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.engine import Engine
from trtx.runtime.memory import PoolSize, block_bytes, blocks_per_sequence
from trtx.runtime.params import SamplingParams

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FRACTION = 0.9


@pytest.fixture(scope="module")
def engines() -> Iterator[ModuleType]:
    """benchmarks/gpu_engines.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import gpu_engines

        yield gpu_engines


@pytest.fixture(scope="module")
def built(engines: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return engines.build_engine("bf16", tmp_path_factory.mktemp("engine"), num_layers=2)


@pytest.fixture(scope="module")
def measured(engines: ModuleType, built: Any) -> Measured:
    """What the engine takes besides its pools, once what is loaded for the life of a process is there."""
    return [measure_alone(engines, built) for _ in range(2)][-1]


def measure_alone(engines: ModuleType, built: Any) -> Measured:
    memory = CudaMemory()
    weights = engines.make_weights(built.card)
    program = load_program(built.folder, built.card, weights)
    return measure(memory, lambda num_blocks: make_ready(built.card, program, num_blocks))


def leave(free_bytes: int) -> Tensor:
    """A tensor that takes all of the GPU's memory but so much."""
    return torch.empty(CudaMemory().available - free_bytes, dtype=torch.uint8, device="cuda")


def load(engines: ModuleType, built: Any) -> DeviceEngine:
    memory = CudaMemory()
    weights = engines.make_weights(built.card)
    size = PoolSize(None, FRACTION, sum(tensor.nbytes for tensor in weights.values()))
    programs = make_sized_programs(built.folder, built.card, weights, size, memory)
    return DeviceEngine(programs, engines.make_tokenizer(built.card.model.vocab_size))


def generate(engine: DeviceEngine, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=4, temperature=1.0, top_p=0.9, top_k=1000, min_p=0.001, seed=5, ignore_eos=True)
    found = engine.generate(prompts, params)
    assert [len(one.token_ids) for one in found] == [4] * len(prompts)
    engine.check_integrity()


def test_a_full_pool_leaves_room_for_the_largest_step(engines: ModuleType, built: Any, measured: Measured) -> None:
    limits, most = built.card.limits, built.card.limits.max_batch_size * blocks_per_sequence(built.card)
    pools = most // 2 * block_bytes(built.card)
    ballast = leave(int((measured.taken + MARGIN_BYTES + pools) / FRACTION))
    engine = load(engines, built)
    # Memory decides, not the limits.
    assert most // 4 < engine.load_now.kv_blocks < most
    length = limits.max_num_tokens // limits.max_batch_size
    generate(engine, [[sequence + 1] * length for sequence in range(limits.max_batch_size)])
    # Steps of other sizes cut the same memory otherwise.
    generate(engine, [[sequence + 1] * (1000 - 7 * sequence) for sequence in range(limits.max_batch_size // 2)])
    generate(engine, [[7, 8, 9]])
    del ballast


def test_weights_without_room_are_refused_before_they_are_read(applied: Path) -> None:
    ballast = leave(1 << 20)
    with pytest.raises(EnvironmentProblem, match="the KV cache would have") as problem:
        Engine.load(applied / PACKAGE)
    assert "for the weights" in problem.value.why
    assert "free memory" in problem.value.fix
    del ballast


def test_a_gpu_without_room_for_the_largest_step_is_refused(
    engines: ModuleType, built: Any, measured: Measured
) -> None:
    weights = sum(tensor.nbytes for tensor in engines.make_weights(built.card).values())
    ballast = leave(weights + (measured.taken - weights) // 2)
    with pytest.raises(EnvironmentProblem, match="does not fit into the GPU's memory") as problem:
        load(engines, built)
    assert "out of memory" in problem.value.why
    assert "max_num_tokens" in problem.value.fix
    del ballast
