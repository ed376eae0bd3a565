"""The engine's perplexity is ModelOpt's own, in every format: prefill in chunks, the last tokens one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from support.modules import TOKENS_PER_BLOCK, convert_quietly, make_spec
from unit.quant.conftest import BATCH_SIZE, MAX_LENGTH, Export

from trtx.backends.inductor.check import collect_logits, distance, load_heldout, make_batching, measure_perplexity
from trtx.backends.inductor.evidence import make_tolerances, was_kept
from trtx.backends.inductor.keep import keep_checkpoint
from trtx.backends.inductor.module import make_eager
from trtx.backends.inductor.reference import load_checkpoint, load_model
from trtx.backends.inductor.spec import make_card
from trtx.errors import VerificationFailed
from trtx.models.checkpoint import Checkpoint
from trtx.models.config import DType
from trtx.models.formats import SIMULATED_ON_CPU, QuantFormat
from trtx.quant.read_format import read_quant_format
from trtx.recipe.schema import AS_STORED, Algorithm
from trtx.runtime.card import Limits
from trtx.runtime.program import load_weights

LIMITS = Limits(max_batch_size=16, max_num_tokens=1024, max_seq_len=64)
MakeExport = Callable[..., Export]

# What an engine may be away from ModelOpt's perplexity, whatever the format.
CLOSE = 0.003
FORMATS = [
    *((algorithm, "auto", "float32") for algorithm in get_args(Algorithm) if algorithm != AS_STORED),
    *((algorithm, kv_cache, "float32") for algorithm, kv_cache in (("none", "fp8"), ("none", "int8"), ("fp8", "fp8"))),
    *((algorithm, "auto", "bfloat16") for algorithm in ("none", "int8_sq", "int4_awq", "fp8")),
]


@pytest.mark.parametrize(("algorithm", "kv_cache", "dtype"), FORMATS)
def test_the_engine_has_the_perplexity_that_modelopt_measured(
    export: MakeExport, model: Path, data: Path, tmp_path: Path, algorithm: str, kv_cache: str, dtype: DType
) -> None:
    made = export(algorithm, kv_cache)
    heldout = load_heldout(made.folder)
    window = heldout.tokens.shape[1] - 1
    config = convert_quietly(made.folder, tmp_path / "weights", dtype)
    card = make_card(make_spec(config, LIMITS), {}, {}, "")
    weights = load_weights(card, tmp_path / "weights")
    programs = make_eager(card, weights, 1 + LIMITS.max_batch_size * math.ceil(window / TOKENS_PER_BLOCK))
    assert programs.card.compiled_for.simulated == (algorithm in SIMULATED_ON_CPU)

    perplexity = measure_perplexity(programs, heldout.tokens, make_batching(programs.card, window))
    bounds = make_tolerances(programs.card) | make_tolerances(programs.card, kept=True)
    compared = heldout.tokens[:4, :48]
    answers = collect_logits(programs, compared)
    figures = {
        "perplexity_vs_modelopt": abs(perplexity / heldout.perplexity - 1),
        "logits_vs_checkpoint": distance(answers, load_checkpoint(made.folder, LIMITS.max_seq_len).logits(compared)),
        "logits_vs_model": distance(answers, load_model(model, LIMITS.max_seq_len).logits(compared)),
        # What the check of a model that was quantized elsewhere compares with.
        "perplexity_vs_checkpoint": abs(perplexity / keep(made.folder, data, tmp_path / "kept") - 1),
    }
    assert figures["perplexity_vs_modelopt"] <= CLOSE
    assert {name for name, figure in figures.items() if figure > bounds[name]} == set()


def keep(checkpoint: Path, data: Path, output: Path) -> float:
    """The perplexity that is measured of a quantized model which is kept as it is."""
    output.mkdir()
    with Checkpoint(checkpoint) as source:
        quantization = read_quant_format(source)
    method: dict[str, Any] = {"max_length": MAX_LENGTH, "batch_size": BATCH_SIZE}
    report = keep_checkpoint(
        checkpoint, data, output, quantization, **method, say=lambda text: None, progress=lambda *_: None
    )
    assert load_heldout(output).perplexity == report["perplexity"]["after"]
    assert was_kept(output)
    perplexity: float = report["perplexity"]["after"]
    return perplexity


def test_a_model_in_another_format_than_was_planned_is_refused(export: MakeExport, data: Path, tmp_path: Path) -> None:
    planned = QuantFormat(algorithm="fp8")
    method: dict[str, Any] = {"max_length": MAX_LENGTH, "batch_size": BATCH_SIZE}
    with pytest.raises(VerificationFailed, match="not quantized as was planned"):
        keep_checkpoint(
            export("int8_wo").folder,
            data,
            tmp_path,
            planned,
            **method,
            say=lambda text: None,
            progress=lambda *_: None,
        )
    assert not any(tmp_path.iterdir())
