"""A mixture of experts whose experts are quantized, from its model to a compiled and checked engine."""

from __future__ import annotations

import json
from pathlib import Path

from support.architectures import make_model

from tests.engine.conftest import build_engine, write_tokenizer
from trtx.backends.inductor.evidence import CHECK_NAME
from trtx.models.formats import QuantFormat
from trtx.runtime.card import load_card


def test_a_compiled_mixture_with_experts_in_fp8_answers_like_its_checkpoint(tmp_path: Path) -> None:
    sizes = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.05}
    make_model(tmp_path / "model", "MixtralForCausalLM", "experts", num_attention_heads=4, head_dim=16, **sizes)
    write_tokenizer(tmp_path / "model")
    built = build_engine(tmp_path, QuantFormat(algorithm="fp8"), tmp_path / "model")
    checked = json.loads((built.engine / CHECK_NAME).read_text())
    assert checked["passed"]
    assert set(checked["figures"]) >= {"compiled_vs_eager", "logits_vs_checkpoint", "perplexity_vs_modelopt"}
    constants = load_card(built.engine).programs["step"].constants
    assert "layers.0.mlp.down.input_scale" in constants
