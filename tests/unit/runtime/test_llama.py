"""A small random Llama of transformers, run by the engine through the programs before compilation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from support.engines import VOCAB_SIZE, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from trtx.backends.inductor.convert import convert
from trtx.backends.inductor.module import make_eager
from trtx.backends.inductor.spec import EngineSpec, make_card
from trtx.models.checkpoint import load_model_config
from trtx.models.formats import QuantFormat
from trtx.runtime.card import Limits, Rank
from trtx.runtime.engine import Engine
from trtx.runtime.program import load_weights
from trtx.runtime.request import SamplingParams

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
def engine(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Engine:
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
    return Engine(make_eager(card, load_weights(card, folder / "weights"), num_blocks=40), make_tokenizer())


def test_greedy_tokens_are_those_of_transformers_whatever_runs_beside_them(
    llama: LlamaForCausalLM, engine: Engine
) -> None:
    draw = random.Random(1)
    # Some prompts are longer than a prefill may be, and all of them together exceed the batch and the pool.
    prompts = [[draw.randrange(VOCAB_SIZE) for _ in range(draw.choice((1, 7, 8, 30, 60)))] for _ in range(16)]
    lengths = [draw.randint(1, 24) for _ in prompts]
    params = [SamplingParams(max_tokens=length, temperature=0, ignore_eos=True) for length in lengths]
    completions = engine.generate(prompts, params)
    engine.check_integrity()
    for prompt, length, completion in zip(prompts, lengths, completions, strict=True):
        ids = torch.tensor([prompt])
        expected = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()
