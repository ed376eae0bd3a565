from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtx.bench.stats import Percentiles, Spread, percentile

floats = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (95, 3.85), (100, 4.0)])
def test_a_percentile_lies_between_its_two_neighbours(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


@given(values=st.lists(floats, min_size=1, max_size=30), percent=st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


def test_a_single_value_is_every_percentile() -> None:
    assert percentile([7.0], 99) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_spread_over_repeats_has_the_sample_deviation() -> None:
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.stdev, spread.min, spread.max) == (2.0, 1.0, 1.0, 3.0)
    assert spread.repeats == (1.0, 2.0, 3.0)


def test_a_single_repeat_has_no_spread() -> None:
    assert Spread.of([5.0]).stdev == 0.0


def test_percentiles_are_taken_within_each_repeat_and_then_spread() -> None:
    found = Percentiles.of([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    assert (found.p50.mean, found.p50.repeats) == (3.0, (2.0, 4.0))
    assert found.p99.repeats == (pytest.approx(2.98), pytest.approx(4.98))
