"""The next token of every sequence from its logits. Legend: N sequences, V vocabulary, R ranks (sorted vocabulary)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trtx.runtime.request import Request


class LogitsBroken(RuntimeError):
    """The program returned logits that are not numbers."""


def sample(logits_NV: Tensor, requests: Sequence[Request]) -> list[int]:
    """One token id per row, in the order of `requests`; `logits_NV` is float32.

    A greedy request takes the largest logit. Any other is drawn from softmax(logits / temperature) cut by top-k, then
    top-p, by inverting the cumulative distribution at one number from the request's own generator, so that a seeded
    request does not depend on what else is in the batch.

    Raises LogitsBroken when the largest logit of a row is not finite.
    """
    best_N, token_N = logits_NV.max(dim=-1)
    if not all(map(math.isfinite, best_N.tolist())):
        raise LogitsBroken("the program returned logits that are not finite numbers")
    token_ids: list[int] = token_N.tolist()
    rows = [row for row, request in enumerate(requests) if not request.params.greedy]
    if rows:
        # The largest logit becomes 0, so that a temperature close to 0 does not overflow.
        drawn = _draw((logits_NV - best_N[:, None])[rows], [requests[row] for row in rows])
        for row, token_id in zip(rows, drawn, strict=True):
            token_ids[row] = token_id
    return token_ids


def _draw(logits_NV: Tensor, requests: Sequence[Request]) -> list[int]:
    params = [request.params for request in requests]
    weights_NV = (logits_NV / _column([p.temperature for p in params])).softmax(dim=-1, dtype=torch.float64)
    if any(p.top_k or p.top_p < 1 for p in params):
        threshold_N1 = _find_threshold(weights_NV, [p.top_k for p in params], [p.top_p for p in params])
        weights_NV = weights_NV.masked_fill(weights_NV < threshold_N1, 0.0)
    cumulative_NV = weights_NV.cumsum(dim=-1)
    # In float64 a number below 1 times the total stays below the total. right=True finds the first cumulative weight
    # above that, so the token there has a weight of its own.
    target_N1 = _column([request.random.random() for request in requests]) * cumulative_NV[:, -1:]
    token_ids: list[int] = torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0].tolist()
    return token_ids


def _find_threshold(weights_NV: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Per row the smallest probability that stays, [N, 1]; equal probabilities stay or go together.

    top-p keeps the fewest leading tokens whose mass, among those that top-k left, reaches p (Holtzman et al. 2020,
    arXiv:1904.09751); the first token always stays.
    """
    vocab_size = weights_NV.shape[-1]
    # Sorting a large vocabulary is dear; when every request has a top-k its first ranks are enough.
    num_ranks = min(vocab_size, max(top_k)) if all(top_k) else vocab_size
    ranked_NR = weights_NV.topk(num_ranks, dim=-1).values
    top_k_N1 = torch.tensor([[k or vocab_size] for k in top_k])
    left_NR = ranked_NR.masked_fill(torch.arange(num_ranks) >= top_k_N1, 0.0)
    before_NR = left_NR.cumsum(dim=-1) - left_NR
    goal_N1 = _column([p if p < 1 else math.inf for p in top_p]) * left_NR.sum(dim=-1, keepdim=True)
    kept_NR = (left_NR > 0) & (before_NR < goal_N1)
    last_N1 = kept_NR.sum(dim=-1, keepdim=True).sub(1).clamp(min=0)
    return ranked_NR.gather(1, last_N1)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]
