"""Perplexity on held-out text, in windows that each stand alone.

Shape suffixes: K windows, W tokens of context, U = W + 1, V vocabulary, S tokens of a whole text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trtx.errors import UsageProblem

# Tokens of a window at most: an engine is asked the same windows, and its sequences may be short.
MAX_WINDOW = 128
# Enough to tell formats apart, little enough for a second on a small model.
MAX_HELD_OUT_TOKENS = 16384

# Tokens to logits [K, W, V] of any float type.
Predict = Callable[[Tensor], Tensor]


def make_windows(rows: Sequence[Sequence[int]], length: int, max_tokens: int = MAX_HELD_OUT_TOKENS) -> Tensor:
    """All rows in one line, cut into windows [K, length + 1] int64; neighbours share one token.

    A window predicts its tokens 1…length from its tokens 0…length-1. At most `max_tokens` are predicted.

    Raises UsageProblem when there is not one whole window.
    """
    line_S = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    count = min((len(line_S) - 1) // length, max(1, max_tokens // length))
    if count < 1:
        raise UsageProblem(
            f"the held-out text is too short: {len(line_S)} tokens, and one window has {length + 1}",
            fix="raise `calibration.heldout` or lower `calibration.max_length`",
        )
    return torch.stack([line_S[start : start + length + 1] for start in range(0, count * length, length)])


@torch.no_grad()
def mean_nats(predict: Predict, windows_KU: Tensor, batch_size: int) -> float:
    """Mean negative log-likelihood per predicted token, in nats; NaN where the logits are."""
    total = 0.0
    for start in range(0, len(windows_KU), batch_size):
        batch_KU = windows_KU[start : start + batch_size]
        logits_KWV = predict(batch_KU[:, :-1]).float()
        targets_KW = batch_KU[:, 1:].to(logits_KWV.device)
        total += F.cross_entropy(logits_KWV.flatten(0, 1), targets_KW.flatten(), reduction="sum").item()
    return total / windows_KU[:, 1:].numel()


def perplexity_of(nats: float) -> float:
    """exp of the mean negative log-likelihood; infinite rather than an error where it is too large."""
    return math.exp(nats) if not nats > 700 else math.inf
