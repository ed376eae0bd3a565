"""The next token of every sequence from its logits. Legend: N sequences, V vocabulary.

On a CPU numpy's argmax and partition are 10 and 30 times as fast as torch's; arrays and tensors here share memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trtx.runtime.adjust import Adjustments, NoTokenLeft
from trtx.runtime.draw import draw, draw_top_k, largest_ids
from trtx.runtime.request import Request, Sampled

Floats = npt.NDArray[np.float32]


class LogitsBroken(RuntimeError):
    """The program returned logits that are not numbers."""


def sample(logits_NV: Tensor, requests: Sequence[Request]) -> list[Sampled]:
    """One token per row, in the order of `requests`; `logits_NV` is float32 on the CPU and is left as it is.

    SamplingParams says how. Every drawn token takes one number from the request's own generator, and a row is worked on
    alone, so that a seeded request does not depend on what else is in the batch. A request whose adjustments fail gets
    its `failure` set and a token that means nothing: it ends with `Request.append`.

    Raises LogitsBroken when the largest logit of a row is not finite.
    """
    rows_NV: Floats = logits_NV.numpy()
    token_N = rows_NV.argmax(-1)
    best_N = rows_NV[np.arange(len(requests)), token_N]
    if not np.isfinite(best_N).all():
        raise LogitsBroken("the program returned logits that are not finite numbers")
    token_ids: list[int] = token_N.tolist()
    special = [row for row, request in enumerate(requests) if not request.is_plain]
    if not special:
        return list(map(Sampled, token_ids))
    for row, token_id in _choose(rows_NV, best_N, special, requests):
        token_ids[row] = token_id
    return [
        Sampled(token_id) if request.params.logprobs is None else _look_up(row_V, token_id, request.params.logprobs)
        for row_V, token_id, request in zip(rows_NV, token_ids, requests, strict=True)
    ]


def score(logits_NV: Tensor, token_ids: Sequence[int], count: int) -> list[Sampled]:
    """Tokens that come next whatever the model makes of it: how likely it held each, and its `count` favourites.

    Raises LogitsBroken when the largest logit of a row is not finite.
    """
    rows_NV: Floats = logits_NV.numpy()
    if not np.isfinite(rows_NV.max(-1)).all():
        raise LogitsBroken("the program returned logits that are not finite numbers")
    return [_look_up(row_V, token_id, count) for row_V, token_id in zip(rows_NV, token_ids, strict=True)]


def _choose(
    rows_NV: Floats, best_N: Floats, special: Sequence[int], requests: Sequence[Request]
) -> list[tuple[int, int]]:
    """(row, token) of the rows in `special` for which the largest logit is not the answer."""
    chosen: list[tuple[int, int]] = []
    drawn: list[tuple[int, Floats, float]] = []
    for row in special:
        request = requests[row]
        params, row_V, best = request.params, rows_NV[row], float(best_N[row])
        if request.is_adjusted:
            try:
                row_V = _adjust(row_V, request)
            except NoTokenLeft as error:
                request.failure = str(error)
                continue
            best = float(row_V.max())
        if params.greedy:
            if request.is_adjusted:
                chosen.append((row, int(row_V.argmax())))
        elif 0 < params.top_k < row_V.size:
            chosen.append((row, draw_top_k(row_V, best, params, request.random.random())))
        else:
            drawn.append((row, row_V, best))
    if drawn:
        rows, logits, largest = zip(*drawn, strict=True)
        asking = [requests[row] for row in rows]
        numbers = [request.random.random() for request in asking]
        chosen += zip(rows, draw(logits, largest, [request.params for request in asking], numbers), strict=True)
    return chosen


def _adjust(row_V: Floats, request: Request) -> Floats:
    if request.adjustments is None:
        request.adjustments = Adjustments(request)
    return request.adjustments.apply(row_V.copy())


def _look_up(row_V: Floats, token_id: int, count: int) -> Sampled:
    """The chosen token with its logarithmic probability, its rank, and the `count` most likely tokens with theirs."""
    largest = row_V.max()
    log_total = float(largest) + float(np.log(np.exp(row_V - largest).sum(dtype=np.float64)))
    rank = int(np.count_nonzero(row_V > row_V[token_id])) + 1
    top = largest_ids(row_V, count) if count else []
    return Sampled(
        token_id,
        float(row_V[token_id]) - log_total,
        rank,
        tuple((other, float(row_V[other]) - log_total) for other in top),
    )
