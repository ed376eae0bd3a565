"""Ranks in processes of their own: the same answers as one rank, and what is heard of one that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_llama, make_unified
from support.engines import expected_tokens, make_card, make_tokenizer
from support.modules import convert_quietly, make_eager_engine, make_spec, run_in_pieces
from torch import Tensor

from trtx.backends.inductor.check import generate_greedily
from trtx.backends.inductor.module import EagerRanks, make_module
from trtx.backends.inductor.spec import make_card as make_engine_card
from trtx.errors import EnvironmentProblem, VerificationFailed
from trtx.files import write_json
from trtx.models.config import DType
from trtx.models.fused import FusedDecoder
from trtx.runtime.card import CARD_NAME, EngineCard, Rank, load_card
from trtx.runtime.device_engine import DeviceEngine
from trtx.runtime.fit import Machine, check_machine
from trtx.runtime.memory import PoolSize, block_bytes
from trtx.runtime.params import SamplingParams
from trtx.runtime.program import EagerPrograms, load_weights
from trtx.runtime.rank_programs import DeviceRankPrograms, RankPrograms, load_ranks
from trtx.runtime.ranks import NCCL_DEFAULTS, rank_environment
from trtx.runtime.request import Request

EAGER = "support.ranks:load_eager"
NUM_BLOCKS = 40


def tokens(count: int = 3) -> Tensor:
    return torch.randint(0, 64, (count, 20), generator=torch.Generator().manual_seed(3))


def load_small(folder: Path, tensor: int, dtype: DType = "float32", loader: str = EAGER) -> RankPrograms:
    """An engine of so many ranks over the model in `folder`/model."""
    cut = folder / f"{tensor}-{dtype}"
    cut.mkdir()
    make_eager_engine(cut, folder / "model", dtype, tensor=tensor)
    return load_ranks(cut / "engine", cut / "weights", load_card(cut / "engine"), NUM_BLOCKS, loader)


def pids(programs: RankPrograms) -> list[int]:
    return [process.pid for process in programs._processes._processes.values()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(numbers: list[int], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, numbers)):
        assert time.monotonic() < deadline, "a rank outlived its engine"
        time.sleep(0.02)


@pytest.mark.parametrize(("tensor", "tied"), [(2, True), (4, False)])
def test_ranks_answer_as_one_does(tmp_path: Path, tensor: int, tied: bool) -> None:
    """Four ranks share two key-value heads; biases of summed outputs are added once."""
    make_llama(tmp_path / "model", tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    one = make_eager_engine(tmp_path, tmp_path / "model")
    several = load_small(tmp_path, tensor)
    expected, found = (run_in_pieces(programs, tokens(), (5, 9), 4) for programs in (one, several))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    prompts = tokens(2)[:, :7]
    assert torch.equal(generate_greedily(several, prompts, 12), generate_greedily(one, prompts, 12))
    numbers = pids(several)
    del several
    wait_until_gone(numbers)


def test_ranks_in_bfloat16_stay_as_near_as_its_rounding(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    expected = run_in_pieces(make_eager_engine(tmp_path, tmp_path / "model"), tokens(), (9,), 4)
    found = run_in_pieces(load_small(tmp_path, 2, "bfloat16"), tokens(), (9,), 4)
    assert (found - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("algorithm", ["fp8", "fp8_dynamic", "int8_sq", "int8_wo", "int4_awq", "nvfp4", "mxfp8"])
def test_ranks_of_quantized_models_compute_what_one_does(tmp_path: Path, algorithm: str) -> None:
    """Over threads: the same modules and sums as in processes. Tokens in fp8_dynamic have scales of their own."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    make_unified(tmp_path / "model", algorithm, kv_cache="fp8" if algorithm == "fp8" else "auto", **sizes)
    answers = []
    for tensor in (1, 2):
        (folder := tmp_path / str(tensor)).mkdir()
        answers.append(run_in_pieces(make_eager_engine(folder, tmp_path / "model", tensor=tensor), tokens(), (9,), 4))
    bound = 0.1 if algorithm == "fp8_dynamic" else 0.02
    assert (answers[1] - answers[0]).norm() < bound * answers[0].norm()


@pytest.mark.parametrize("algorithm", ["none", "fp8", "fp8_dynamic", "int8_wo"])
def test_ranks_of_the_fused_decoder_of_gpus_compute_what_one_does(tmp_path: Path, algorithm: str) -> None:
    """By operators in plain torch. Scales of rows are applied after the ranks have added up."""
    make_unified(tmp_path / "model", algorithm, kv_cache="fp8" if algorithm == "fp8" else "auto")
    answers = [run_in_pieces(make_fused(tmp_path, size), tokens(), (9,), 4) for size in (1, 2, 4)]
    # Partial sums are rounded to bfloat16; where numbers are then rounded to 8 bits, some take the next step.
    bound = 0.1 if "fp8" in algorithm else 0.02
    for found in answers[1:]:
        assert (found - answers[0]).norm() < bound * answers[0].norm()


def make_fused(folder: Path, size: int) -> EagerRanks:
    """The module of a GPU's program, on the processor, of so many ranks in threads."""
    config = convert_quietly(folder / "model", folder / f"fused-{size}", "bfloat16", size)
    card = make_engine_card(make_spec(config), {}, {"torch": torch.__version__}, "AVX2")
    ranks = []
    for own in map(card.for_rank, range(size)):
        module = make_module(own.model, own.quantization, own.dtype, own.rank, 64, "gather", "cuda")
        assert isinstance(module, FusedDecoder)
        module.load_state_dict(load_weights(own, folder / f"fused-{size}"), strict=True, assign=True)
        ranks.append(EagerPrograms(own, module, NUM_BLOCKS))
    return EagerRanks(ranks)


def test_a_rank_that_is_killed_ends_the_engine_with_its_name(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    programs = load_small(tmp_path, 2)
    run_in_pieces(programs, tokens(1), (9,), 4)
    os.kill(pids(programs)[0], signal.SIGKILL)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(EnvironmentProblem, match=r"the process of rank 1 of 2 ended by SIGKILL; it said nothing"):
            run_in_pieces(programs, tokens(1), (9,), 4)
    assert time.monotonic() - started < 10
    # Before the engine is closed: it may be killed instead.
    while programs._processes._folder.exists():
        assert time.monotonic() - started < 10
        time.sleep(0.01)


def test_a_rank_that_is_killed_within_a_step_ends_it(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    programs = load_small(tmp_path, 4)
    second = pids(programs)[1]
    os.kill(second, signal.SIGSTOP)
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({second}, 9)"])
    with pytest.raises(EnvironmentProblem, match=r"rank 2 of 4 ended by SIGKILL"):
        run_in_pieces(programs, tokens(1), (9,), 4)
    killer.wait()
    wait_until_gone(pids(programs))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("refuse", "rank 1 of 2: no room"),
        (
            "break_down",
            "the process of rank 1 of 2 ended with exit code 1; "
            "its last words were: ValueError: nobody thought of this",
        ),
        ("leave", "the process of rank 1 of 2 ended with exit code 7; its last words were: and then"),
    ],
)
def test_a_rank_that_cannot_be_loaded_is_named_with_its_reason(tmp_path: Path, loader: str, message: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        load_ranks(tmp_path, tmp_path, write_card(tmp_path, 2), NUM_BLOCKS, f"support.ranks:{loader}")
    assert caught.value.what == message


def test_weights_of_another_cut_are_refused(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    convert_quietly(tmp_path / "model", tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    make_eager_engine(tmp_path / "cut", tmp_path / "model", tensor=2)
    engine = tmp_path / "cut" / "engine"
    with pytest.raises(VerificationFailed, match="were not made for this engine"):
        load_ranks(engine, tmp_path / "whole", load_card(engine), NUM_BLOCKS, EAGER)


def test_no_rank_outlives_an_engine_that_was_killed(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    make_eager_engine(tmp_path, tmp_path / "model", tensor=2)
    script = f"""
import sys, time
sys.path[:] = {sys.path!r}
from pathlib import Path
from trtx.runtime.card import load_card
from trtx.runtime.program import EagerPrograms, load_weights
from trtx.runtime.rank_programs import load_ranks
folder = Path({str(tmp_path)!r})
programs = load_ranks(folder / "engine", folder / "weights", load_card(folder / "engine"), 8, {EAGER!r})
print(programs._processes._folder, *[one.pid for one in programs._processes._processes.values()], flush=True)
time.sleep(60)
"""
    engine = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    folder, *words = engine.stdout.readline().split()
    numbers = [int(word) for word in words]
    assert len(numbers) == 1
    assert is_running(numbers[0])
    engine.kill()
    engine.wait()
    engine.stdout.close()
    wait_until_gone(numbers)
    assert not Path(folder).exists()


def test_an_engine_that_stays_stuck_when_a_rank_ends_is_ended_and_says_why(tmp_path: Path) -> None:
    write_card(tmp_path, 2)
    script = f"""
import sys
sys.path[:] = {sys.path!r}
from pathlib import Path
import torch
from trtx.runtime import rank_processes
from trtx.runtime.card import load_card
from trtx.runtime.program import EagerPrograms, load_weights
from trtx.runtime.rank_programs import load_ranks
rank_processes.STUCK_S = 0.5
folder = Path({str(tmp_path)!r})
load_ranks(folder, folder, load_card(folder), 8, "support.ranks:get_stuck").step(torch.zeros(1))
"""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command, environment = [sys.executable, "-c", script], {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == EnvironmentProblem.exit_code
    assert list(scratch.iterdir()) == []
    assert "error: the process of rank 1 of 2 ended with exit code 7" in done.stderr


def test_signals_for_all_processes_of_a_terminal_are_rank_0_s_business(tmp_path: Path) -> None:
    make_llama(tmp_path / "model")
    programs = load_small(tmp_path, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pids(programs)[0], number)
    assert run_in_pieces(programs, tokens(1), (9,), 4).isfinite().all()


def test_a_device_engine_of_ranks_gives_every_prompt_its_own_tokens(tmp_path: Path) -> None:
    """Started ahead, with drawn tokens that rank 0 alone chooses; the ranks compare their tokens in every step."""
    card = write_card(tmp_path, 2)
    programs = load_ranks(tmp_path, tmp_path, card, 65, "support.ranks:load_device")
    assert isinstance(programs, DeviceRankPrograms)
    engine = DeviceEngine(programs, make_tokenizer())
    prompts = [[1, 2, 3], [7] * 9, [40, 41], [5]]
    greedy = SamplingParams(max_tokens=12, temperature=0.0)
    found = engine.generate(prompts, greedy)
    assert [list(one.token_ids) for one in found] == [expected_tokens(prompt, 12) for prompt in prompts]
    drawn = engine.generate(prompts, SamplingParams(max_tokens=12, temperature=1.5, seed=3, ignore_eos=True))
    assert all(len(one.token_ids) == 12 for one in drawn)
    engine.check_integrity()
    os.kill(pids(programs)[0], signal.SIGKILL)
    with pytest.raises(EnvironmentProblem, match="rank 1 of 2 ended by SIGKILL"):
        engine.generate(prompts, greedy)


def test_a_step_of_a_device_that_waits_for_a_rank_ends_with_it(tmp_path: Path) -> None:
    card = write_card(tmp_path, 2)
    programs = load_ranks(tmp_path, tmp_path, card, 65, "support.ranks:load_device")
    assert isinstance(programs, DeviceRankPrograms)
    engine = DeviceEngine(programs, make_tokenizer())
    request: Request = engine.make_request([1, 2, 3], SamplingParams(max_tokens=12, temperature=0.0))
    engine.add_request(request)
    engine.step()
    flight = engine._flight
    assert flight is not None
    flight.pending._own._done_s = float("inf")  # type: ignore[attr-defined]
    os.kill(pids(programs)[0], signal.SIGKILL)
    with pytest.raises(EnvironmentProblem, match="rank 1 of 2 ended by SIGKILL"):
        engine.step()


def test_every_rank_sees_its_own_gpu_alone() -> None:
    assert rank_environment("cpu", 1, {"A": "b"}) == {"A": "b"}
    assert rank_environment("cuda", 1, {}) == {"CUDA_VISIBLE_DEVICES": "1", **NCCL_DEFAULTS}
    chosen = {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b", "NCCL_NVLS_ENABLE": "1"}
    expected = {**NCCL_DEFAULTS, "CUDA_VISIBLE_DEVICES": "GPU-b", "NCCL_NVLS_ENABLE": "1"}
    assert rank_environment("cuda", 1, chosen) == expected


def test_the_size_of_pools_is_what_fits_on_every_rank(tmp_path: Path) -> None:
    """Ranks on processors share what is there; the smallest number of all is what GPUs agree on."""
    make_llama(tmp_path / "model")
    make_eager_engine(tmp_path, tmp_path / "model", tensor=2)
    card = load_card(tmp_path / "engine")
    size = PoolSize(20 * block_bytes(card) + 1, 0.9, 0)
    programs = load_ranks(tmp_path / "engine", tmp_path / "weights", card, size, EAGER)
    assert programs.num_blocks == 20
    sized = load_ranks(tmp_path, tmp_path, write_card(tmp_path, 2), 65, "support.ranks:load_agreed")
    assert sized.num_blocks == 30


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (("sm_90",), "runs on 2 GPUs and this machine has 1"),
        (("sm_90", "sm_80"), "compiled for sm_90 GPUs and this machine has sm_80"),
        (("sm_90", "sm_90", "sm_80"), ""),
    ],
)
def test_an_engine_of_ranks_wants_a_gpu_for_each(gpus: tuple[str, ...], message: str) -> None:
    card = make_card()
    target = card.compiled_for.model_copy(update={"device": "cuda", "arch": "sm_90"})
    card = card.model_copy(update={"rank": Rank(tensor=2), "compiled_for": target})
    machine = Machine("x86_64", frozenset(), torch.__version__, gpus)
    if not message:
        check_machine(card, machine)
        return
    with pytest.raises(EnvironmentProblem, match=message):
        check_machine(card, machine)


def write_card(folder: Path, size: int) -> EngineCard:
    """The card of an engine of so many ranks, whose loader looks at nothing else."""
    card = make_card().model_copy(update={"rank": Rank(tensor=size)})
    write_json(folder / CARD_NAME, card.model_dump(mode="json", by_alias=True))
    return card
