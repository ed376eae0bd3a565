"""Percentiles and spread, defined once. Imports nothing heavy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

# What every report says about its figures.
DEFINITIONS = (
    "p50, p95 and p99 interpolate linearly between the two nearest of the sorted values of one repeat"
    " (Hyndman and Fan 1996, type 7, the default of numpy.percentile);"
    " mean, stdev (n - 1), min and max are over the repeats."
)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` % of the values lie: at rank (n - 1) · percent / 100 of the sorted values, from
    0, interpolated linearly (Hyndman and Fan 1996, type 7). Raises ValueError when there are no values.
    """
    if not values:
        raise ValueError("a percentile of no values")
    ranked = sorted(values)
    rank = (len(ranked) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (rank - below)


class Spread(BaseModel):
    """One figure over the repeats of a measurement; `stdev` is 0 for a single repeat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    stdev: float
    min: float
    max: float
    repeats: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError when there are no values."""
        return cls(
            mean=statistics.fmean(values),
            stdev=statistics.stdev(values) if len(values) > 1 else 0.0,
            min=min(values),
            max=max(values),
            repeats=tuple(values),
        )


class Percentiles(BaseModel):
    """p50, p95 and p99 of a latency in seconds, each over the repeats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: Spread
    p95: Spread
    p99: Spread

    @classmethod
    def of(cls, repeats: Sequence[Sequence[float]]) -> Percentiles:
        """From the latencies of each repeat. Raises ValueError when a repeat has none."""

        def over_repeats(percent: float) -> Spread:
            return Spread.of([percentile(values, percent) for values in repeats])

        return cls(p50=over_repeats(50), p95=over_repeats(95), p99=over_repeats(99))
