"""A small random Llama of transformers, run by the engine through the programs before compilation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from support.engines import VOCAB_SIZE, make_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trtx.backends.inductor.convert import convert
from trtx.backends.inductor.module import make_eager
from trtx.backends.inductor.spec import EngineSpec, make_card
from trtx.models.checkpoint import load_model_config
from trtx.models.formats import QuantFormat
from trtx.runtime.card import EngineCard, Limits, Rank
from trtx.runtime.engine import Engine
from trtx.runtime.program import load_weights
from trtx.runtime.request import SamplingParams
from trtx.runtime.scheduler import SchedulerSettings

LIMITS = Limits(max_batch_size=5, max_num_tokens=48, max_seq_len=96)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def card_and_weights(
    llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EngineCard, dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder / "model")
    (folder / "weights").mkdir()
    convert(folder / "model", folder / "weights", "float32", 1, 1, lambda done, total, unit: None)
    spec = EngineSpec(
        model=load_model_config(folder / "model"),
        quantization=QuantFormat(),
        dtype="float32",
        limits=LIMITS,
        tokens_per_block=8,
        rank=Rank(),
        arch="x86-64-v3",
    )
    card = make_card(spec, {}, {"torch": torch.__version__}, "AVX2")
    return card, load_weights(card, folder / "weights")


@pytest.fixture(scope="module")
def asked(llama: LlamaForCausalLM) -> list[tuple[list[int], list[int]]]:
    """Prompts and what transformers answers, each alone. Some prompts are longer than a step may be, and some begin
    alike; all of them together exceed the batch and the pool."""
    draw = random.Random(1)
    shared = [draw.randrange(VOCAB_SIZE) for _ in range(41)]
    found = []
    for number in range(20):
        prompt = [draw.randrange(VOCAB_SIZE) for _ in range(draw.choice((1, 7, 8, 30, 60)))]
        if number % 4 == 0:
            prompt = shared + prompt[:9]
        ids, length = torch.tensor([prompt]), draw.randint(1, 24)
        answer = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        found.append((prompt, answer[0, len(prompt) :].tolist()))
    return found


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize(
    ("num_blocks", "settings"),
    [
        (40, SchedulerSettings("guaranteed-no-evict", prefix_reuse=False)),
        (40, SchedulerSettings()),
        (14, SchedulerSettings()),
    ],
    ids=["no sharing", "shared prefixes", "small pool"],
)
def test_greedy_tokens_are_those_of_transformers_whatever_runs_beside_them(
    card_and_weights: tuple[EngineCard, dict[str, Tensor]],
    asked: list[tuple[list[int], list[int]]],
    num_blocks: int,
    settings: SchedulerSettings,
    overlap: bool,
) -> None:
    card, weights = card_and_weights
    programs = make_eager(card, weights, num_blocks=num_blocks)
    engine = Engine(programs, make_tokenizer(), settings=settings, overlap=overlap)
    params = [SamplingParams(max_tokens=len(answer), temperature=0, ignore_eos=True) for _, answer in asked]
    completions = engine.generate([prompt for prompt, _ in asked], params)
    engine.check_integrity()
    assert [list(completion.token_ids) for completion in completions] == [answer for _, answer in asked]
    assert (engine.stats.cached_tokens > 0) == settings.prefix_reuse
    assert (engine.stats.paused > 0) == (num_blocks == 14)
