"""Windows, perplexity and calibration batches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trtx.errors import UsageProblem, VerificationFailed
from trtx.quant.perplexity import MAX_HELD_OUT_TOKENS, make_windows, mean_nats, perplexity_of
from trtx.quant.rows import make_batches, read_rows

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=12)


@given(ROWS, st.integers(1, 8))
def test_windows_predict_each_token_once_and_in_order(rows: list[list[int]], length: int) -> None:
    line = [token for row in rows for token in row]
    if len(line) <= length:
        with pytest.raises(UsageProblem):
            make_windows(rows, length)
        return
    windows = make_windows(rows, length)
    predicted = windows[:, 1:].flatten().tolist()
    assert predicted == line[1 : len(predicted) + 1]
    assert len(line) - 1 - len(predicted) < length
    assert windows[:, :-1].flatten().tolist() == line[: len(predicted)]


def test_no_more_is_measured_than_the_cap() -> None:
    assert make_windows([[1] * 1000], 30, 100).shape == (3, 31)
    assert make_windows([[1] * 1000], 400, 100).shape == (1, 401)
    assert make_windows([[1] * 20000], 30).shape == (MAX_HELD_OUT_TOKENS // 30, 31)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    windows = torch.randint(0, 50, (7, 9))
    nats = mean_nats(lambda tokens: torch.zeros(*tokens.shape, 50), windows, 3)
    assert perplexity_of(nats) == pytest.approx(50)


def test_the_batch_size_does_not_change_the_figure() -> None:
    table = torch.randn(10, 10)
    windows = torch.randint(0, 10, (7, 9))

    def predict(tokens: Tensor) -> Tensor:
        return table[tokens]

    assert mean_nats(predict, windows, 1) == pytest.approx(mean_nats(predict, windows, 7), rel=1e-6)


@pytest.mark.parametrize(("nats", "expected"), [(0.0, 1.0), (math.inf, math.inf), (1e6, math.inf)])
def test_a_perplexity_too_large_for_a_float_is_infinite(nats: float, expected: float) -> None:
    assert perplexity_of(nats) == expected
    assert math.isnan(perplexity_of(math.nan))


@given(ROWS, st.integers(1, 8), st.integers(1, 4))
def test_batches_hold_every_token_of_every_cut_row_once(rows: list[list[int]], length: int, batch_size: int) -> None:
    batches = make_batches(rows, length, batch_size)
    assert [token for batch in batches for token in batch.flatten().tolist()] == [
        token for row in rows for token in row[:length]
    ]
    assert all(0 < batch.shape[0] <= batch_size and 0 < batch.shape[1] <= length for batch in batches)
    assert all(batch.shape[1] == length for batch in batches[:-1])


@pytest.mark.parametrize("content", ['{"text": 1', '{"other": "x"}', "3"])
def test_a_damaged_file_of_texts_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text(content)
    with pytest.raises(VerificationFailed, match="is not a file of texts"):
        read_rows(path)
