"""The next token of every sequence from its logits. Legend: N sequences, V vocabulary, R ranks (sorted vocabulary).

On a CPU numpy's argmax and sort are 10 and 30 times as fast as torch's, and torch's cumulative sum 10 times as fast as
numpy's; arrays and tensors here share their memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trtx.runtime.request import Request, SamplingParams

# Below it a float32 division by the temperature gives NaN; it is as good as 0 long before.
MIN_TEMPERATURE = 1e-30

Floats = npt.NDArray[np.float32]


class LogitsBroken(RuntimeError):
    """The program returned logits that are not numbers."""


def sample(logits_NV: Tensor, requests: Sequence[Request]) -> list[int]:
    """One token id per row, in the order of `requests`; `logits_NV` is float32 on the CPU.

    A greedy request takes the largest logit. Any other is drawn from softmax(logits / temperature) cut by top-k, then
    top-p, by inverting the cumulative distribution at one number from the request's own generator, so that a seeded
    request does not depend on what else is in the batch.

    Raises LogitsBroken when the largest logit of a row is not finite.
    """
    rows_NV = logits_NV.numpy()
    token_N = rows_NV.argmax(-1)
    best_N = rows_NV[np.arange(len(requests)), token_N]
    if not np.isfinite(best_N).all():
        raise LogitsBroken("the program returned logits that are not finite numbers")
    token_ids: list[int] = token_N.tolist()
    drawn = [row for row, request in enumerate(requests) if not request.params.greedy]
    if drawn:
        # The largest logit becomes 0, so that a temperature close to 0 does not overflow.
        below_NV = torch.from_numpy(rows_NV[drawn] - best_N[drawn, None])
        for row, token_id in zip(drawn, _draw(below_NV, [requests[row] for row in drawn]), strict=True):
            token_ids[row] = token_id
    return token_ids


def _draw(below_NV: Tensor, requests: Sequence[Request]) -> list[int]:
    params = [request.params for request in requests]
    # Softmax without its denominator: the cumulative sum is compared with a part of its own total.
    temperature_N1 = torch.tensor([[max(p.temperature, MIN_TEMPERATURE)] for p in params])
    weights_NV = below_NV.div_(temperature_N1).exp_()
    if any(p.top_k or p.top_p < 1 for p in params):
        least_N1 = torch.from_numpy(_find_least(weights_NV.numpy(), params))
        weights_NV = weights_NV.where(weights_NV >= least_N1, 0.0)
    cumulative_NV = weights_NV.cumsum(-1, dtype=torch.float64).numpy()
    # In float64 a number below 1 times the total stays below the total. side="right" finds the first cumulative
    # weight above that, so the token there has a weight of its own.
    return [
        int(np.searchsorted(cumulative_V, request.random.random() * cumulative_V[-1], side="right"))
        for cumulative_V, request in zip(cumulative_NV, requests, strict=True)
    ]


def _find_least(weights_NV: Floats, params: Sequence[SamplingParams]) -> Floats:
    """Per row the smallest weight that stays, [N, 1]; equal weights stay or go together.

    top-p keeps the fewest leading tokens whose mass, among those that top-k left, reaches p (Holtzman et al. 2020,
    arXiv:1904.09751); the first token always stays.
    """
    vocab_size = weights_NV.shape[-1]
    top_k = [min(p.top_k or vocab_size, vocab_size) for p in params]
    falling_NR = np.negative(weights_NV)
    if max(top_k) < vocab_size:
        # When every request has a top-k, the first ranks are enough.
        falling_NR = np.partition(falling_NR, max(top_k) - 1)[:, : max(top_k)]
    ranked_NR = np.negative(np.sort(falling_NR))
    left_NR = np.where(np.arange(ranked_NR.shape[-1]) < np.array(top_k)[:, None], ranked_NR, 0)
    sums_NR = torch.from_numpy(left_NR).cumsum(-1, dtype=torch.float64).numpy()
    goals = [p.top_p * sums_R[-1] if p.top_p < 1 else np.inf for p, sums_R in zip(params, sums_NR, strict=True)]
    # The ranks before the one that reaches the goal fall short of it.
    last = [
        min(int(np.searchsorted(sums_R, goal)), k - 1) for sums_R, goal, k in zip(sums_NR, goals, top_k, strict=True)
    ]
    least_N1: Floats = ranked_NR[np.arange(len(params)), last][:, None]
    return least_N1
