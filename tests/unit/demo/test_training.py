"""The demo model's training: what it writes, and that it writes the same again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.demo import SMALL, some_docs, train_small
from tokenizers import Tokenizer

from trtx.models.demo import train
from trtx.models.demo.config import make_hf_config
from trtx.models.demo.muon import orthogonalize
from trtx.models.demo.network import Llama

FEW_STEPS = dataclasses.replace(SMALL, steps=5)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("trained"))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (train_small(tmp_path / name, FEW_STEPS) for name in ("first", "second"))
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    other = train_small(tmp_path / "other", dataclasses.replace(FEW_STEPS, seed=8))
    assert (other / "model.safetensors").read_bytes() != (first / "model.safetensors").read_bytes()


def test_the_process_s_own_settings_come_back(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected, before = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(3)
    train_small(tmp_path, FEW_STEPS)
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_beats_the_unigram_and_says_so(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((trained / "trtx_demo.json").read_text())
    assert summary["bits_per_byte"] < summary["unigram_bits_per_byte"] - 0.2
    assert summary["steps"] == SMALL.steps
    assert summary["parameters"] == sum(tensor.numel() for tensor in load_file(trained / "model.safetensors").values())


def test_progress_is_reported_in_steps_and_losses_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int, str]] = []
    monkeypatch.setattr(train, "collect_docs", some_docs)
    train.train_model(FEW_STEPS, tmp_path, lambda *report: seen.append(report))
    assert seen == [(step, 5, "steps") for step in range(1, 6)]
    printed = capsys.readouterr().out
    assert "step 5/5: loss" in printed
    assert "held out:" in printed


def test_the_config_is_the_one_that_was_planned(trained: Path) -> None:
    assert json.loads((trained / "config.json").read_text()) == make_hf_config(SMALL)


def test_transformers_loads_the_model_and_computes_the_same(trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(trained)
    ours = Llama(SMALL)
    weights = load_file(trained / "model.safetensors")
    ours.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    tokens = torch.arange(3, 3 + 300).reshape(2, 150) % SMALL.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(input_ids=tokens).logits, atol=2e-5, rtol=1e-4)


def test_transformers_loads_the_tokenizer_and_its_chat_template(trained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert json.loads((trained / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>system: Be brief.\n\nuser: Hello\n\nassistant:"


@settings(max_examples=50)
@given(text=st.text(max_size=40))
def test_any_text_survives_the_tokenizer(trained: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    encoded = tokenizer.encode(text)
    assert encoded.ids[0] == 0
    if not any(token in text for token in ("<s>", "</s>", "<pad>")):
        assert tokenizer.decode(encoded.ids) == text


@pytest.mark.parametrize("shape", [(2, 24, 40), (1, 40, 24)])
def test_orthogonalizing_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_the_schedule_rises_falls_and_ends_with_long_sequences() -> None:
    rates = [train.rate_at(step, SMALL) for step in range(SMALL.steps)]
    assert rates.index(max(rates)) in range(1, SMALL.warmup_steps)
    assert rates[-1] < 0.05
    lengths = [train.length_at(step, SMALL) for step in range(SMALL.steps)]
    assert lengths == sorted(lengths)
    assert lengths.count(SMALL.max_position_embeddings) == round(SMALL.steps * SMALL.long_fraction)
