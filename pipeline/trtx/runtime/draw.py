"""Drawing tokens by their probability.

Legend: N sequences, V vocabulary, P vocabulary filled up to whole columns, G columns, K tokens in play.

Probabilities are kept as weights exp((logit - largest) / temperature): softmax without its denominator, the largest 1.
A draw inverts the cumulative distribution at one number in [0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trtx.runtime.params import SamplingParams

# Below it a float32 division by the temperature gives NaN; it is as good as 0 long before.
MIN_TEMPERATURE = 1e-30

# Rows are summed in columns of so many tokens: numpy reduces many short columns at once ten times as fast as one row.
COLUMN = 32

# Rows are drawn from together while their numbers stay in the processor's cache.
NUMBERS_AT_ONCE = 1 << 17

# top-p looks at about so many of the most probable tokens before it looks at all.
FIRST_LOOK = 512

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def draw(
    rows: Sequence[Floats], largest: Sequence[float], params: Sequence[SamplingParams], numbers: Sequence[float]
) -> list[int]:
    """One token per row; rows are logits [V] with their largest, numbers are in [0, 1).

    top-p keeps the fewest leading tokens whose mass reaches p (Holtzman et al. 2020, arXiv:1904.09751). min-p keeps
    those at least so many times as probable as the most probable (Nguyen et al. 2024, arXiv:2407.01082). The first
    token always stays; equal ones stay or go together.
    """
    at_once = max(1, NUMBERS_AT_ONCE // rows[0].size)
    tokens: list[int] = []
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        weights_NP = _weigh(rows[part], largest[part], params[part])
        for weights_P, p in zip(weights_NP, params[part], strict=True):
            if p.top_p < 1 or p.min_p > 0:
                least = nucleus_least(weights_P, p.top_p) if p.top_p < 1 else np.float32(0)
                weights_P *= weights_P >= max(least, np.float32(p.min_p))
        tokens += _invert(weights_NP, numbers[part])
    return tokens


def draw_top_k(row_V: Floats, largest: float, params: SamplingParams, number: float) -> int:
    """The same for one row of which the `top_k` largest are in play; top-p counts the mass of these."""
    ids_K = _largest(row_V, params.top_k)
    weights_K = row_V[ids_K]
    weights_K -= np.float32(largest)
    weights_K /= np.float32(max(params.temperature, MIN_TEMPERATURE))
    np.exp(weights_K, out=weights_K)
    least = np.float32(params.min_p)
    if params.top_p < 1:
        least = max(least, _reach(_fall(weights_K), params.top_p * float(weights_K.sum())))
    if least > 0:
        weights_K *= weights_K >= least
    cumulative_K = weights_K.cumsum(dtype=np.float64)
    # In float64 a number below 1 times the total stays below the total.
    return int(ids_K[np.searchsorted(cumulative_K, number * cumulative_K[-1], side="right")])


def largest_ids(row_V: Floats, count: int) -> list[int]:
    """The ids of the `count` largest numbers of a row, largest first; of equal ones the lower id first."""
    ids_K = _largest(row_V, count) if count < row_V.size else np.arange(row_V.size)
    order_K = np.argsort(-row_V[ids_K], kind="stable")
    found: list[int] = ids_K[order_K][:count].tolist()
    return found


def _weigh(rows: Sequence[Floats], largest: Sequence[float], params: Sequence[SamplingParams]) -> Floats:
    """Weights [N, P]; those of the filling are 0."""
    vocab_size = rows[0].size
    weights_NP = np.empty((len(rows), -(-vocab_size // COLUMN) * COLUMN), np.float32)
    weights_NP[:, vocab_size:] = -np.inf
    for weights_P, row_V, best in zip(weights_NP, rows, largest, strict=True):
        # The largest becomes 0, so that a temperature close to 0 does not overflow.
        np.subtract(row_V, np.float32(best), out=weights_P[:vocab_size])
    if any(p.temperature != 1 for p in params):
        weights_NP /= np.array([[max(p.temperature, MIN_TEMPERATURE)] for p in params], np.float32)
    return np.exp(weights_NP, out=weights_NP)


def _invert(weights_NP: Floats, numbers: Sequence[float]) -> list[int]:
    """The token of every row at which its cumulative distribution passes the row's number.

    In two steps: first a column, the tokens g, g + G, g + 2 G, … of a row, then a token in it.
    """
    columns_NCG = weights_NP.reshape(len(weights_NP), COLUMN, -1)
    upto_NG = columns_NCG.sum(1).cumsum(-1, dtype=np.float64)
    mass_N1 = upto_NG[:, -1:] * np.array(numbers)[:, None]
    group_N = _find_all(upto_NG, mass_N1)
    row_N = np.arange(len(weights_NP))
    before_N = np.where(group_N > 0, upto_NG[row_N, group_N - 1], 0)
    place_N = _find_all(columns_NCG[row_N, :, group_N].cumsum(-1, dtype=np.float64), mass_N1 - before_N[:, None])
    tokens: list[int] = (place_N * columns_NCG.shape[-1] + group_N).tolist()
    return tokens


def _find_all(cumulative_NG: Doubles, mass_N1: Doubles) -> Ints:
    """Per row the first place whose cumulative weight is above a mass, so that it has a weight of its own."""
    place_N = (cumulative_NG <= mass_N1).sum(-1)
    # Sums that were rounded in another order may fall short of the mass; the last place with a weight stands for it.
    found_N: Ints = np.minimum(place_N, (cumulative_NG < cumulative_NG[:, -1:]).sum(-1))
    return found_N


def nucleus_least(weights_P: Floats, top_p: float) -> np.float32:
    """The smallest weight of the fewest leading tokens whose mass reaches `top_p` of all."""
    goal = top_p * float(weights_P.sum())
    if weights_P.size > 2 * FIRST_LOOK * COLUMN:
        leading_K = weights_P[np.flatnonzero(weights_P >= _bound(weights_P, FIRST_LOOK))]
        if float(leading_K.sum()) >= goal:
            return _reach(_fall(leading_K), goal)
        # All tokens below this weight together have less than the mass that top-p leaves out.
        too_small = np.float32((goal / top_p - goal) / weights_P.size / 2)
        return _reach(_fall(weights_P[np.flatnonzero(weights_P >= too_small)]), goal)
    return _reach(_fall(weights_P), goal)


def _reach(falling_K: Floats, goal: float) -> np.float32:
    """The weight at which the cumulative sum of falling weights reaches a goal; else the last one."""
    if falling_K.size <= FIRST_LOOK:
        place = int(np.searchsorted(falling_K.cumsum(dtype=np.float64), goal))
        return np.float32(falling_K[min(place, falling_K.size - 1)])
    # In two steps, because a cumulative sum costs ten times a sum.
    blocks = falling_K.size // COLUMN
    upto = falling_K[: blocks * COLUMN].reshape(blocks, COLUMN).sum(1).cumsum(dtype=np.float64)
    block = int(np.searchsorted(upto, goal))
    rest = goal - (upto[block - 1] if block else 0.0)
    inner = falling_K[block * COLUMN : (block + 1) * COLUMN].cumsum(dtype=np.float64)
    place = block * COLUMN + int(np.searchsorted(inner, rest))
    least: np.float32 = falling_K[min(place, falling_K.size - 1)]
    return least


def _fall(weights: Floats) -> Floats:
    falling = np.negative(weights)
    falling.sort()
    return np.negative(falling, out=falling)


def _largest(row_V: Floats, count: int) -> Ints:
    """The ids, rising, of the `count` largest numbers and those equal to the last of them."""
    ids_K = np.flatnonzero(row_V >= _bound(row_V, count))
    found_K = row_V[ids_K]
    if ids_K.size > count:
        least = np.partition(found_K, ids_K.size - count)[ids_K.size - count]
        ids_K = ids_K[np.flatnonzero(found_K >= least)]
    return ids_K


def _bound(row_V: Floats, count: int) -> np.float32:
    """A number that at least `count` of the row reach, and seldom many more."""
    columns = row_V.size // COLUMN
    if columns <= count:
        return np.float32(-np.inf)
    # Every column has a number as large as its maximum.
    largest_G = row_V[: columns * COLUMN].reshape(COLUMN, columns).max(0)
    bound: np.float32 = np.partition(largest_G, columns - count)[columns - count]
    return bound
