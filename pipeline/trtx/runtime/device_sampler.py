"""Chooses tokens where the logits are, without the host: what a device does in place of sampler.py and draw.py.

Legend: N sequences, R of them that draw, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trtx.kernels import ops
from trtx.runtime.draw import MIN_TEMPERATURE
from trtx.runtime.request import Request

# In place of a token whose logits are not numbers.
BROKEN = -1
# No vocabulary is larger: what a device's integers can hold.
MAX_TOP_K = 2**31 - 1


@dataclass(frozen=True)
class Draws:
    """Rows that draw, as host tensors: which they are, how, and one number in [0, 1) for each."""

    rows_R: Tensor
    temperature_R: Tensor
    top_k_R: Tensor
    top_p_R: Tensor
    min_p_R: Tensor
    number_R: Tensor

    @property
    def cuts(self) -> bool:
        """Whether any row leaves tokens out."""
        return bool((self.top_k_R > 0).any() or (self.top_p_R < 1).any() or (self.min_p_R > 0).any())


def can_choose(request: Request) -> bool:
    """Whether the device chooses this request's tokens: neither penalties nor logprobs."""
    return not request.is_adjusted and request.params.logprobs is None


def make_draws(requests: Sequence[Request]) -> Draws | None:
    """What the rows of these requests draw with; each takes its next number. None when all take the largest logit."""
    rows = [row for row, request in enumerate(requests) if can_choose(request) and not request.params.greedy]
    if not rows:
        return None
    each = [requests[row].params for row in rows]
    return Draws(
        torch.tensor(rows),
        torch.tensor([max(params.temperature, MIN_TEMPERATURE) for params in each]),
        torch.tensor([min(params.top_k, MAX_TOP_K) for params in each]),
        torch.tensor([params.top_p for params in each]),
        torch.tensor([params.min_p for params in each]),
        torch.tensor([requests[row].random.random() for row in rows], dtype=torch.float64),
    )


def choose_largest(logits_NV: Tensor) -> Tensor:
    """The most likely token of every row, int64 [N]; BROKEN where the largest logit is not finite."""
    return ops.argmax(logits_NV)


def draw_tokens(logits_NV: Tensor, draws: Draws) -> Tensor:
    """The tokens [R] of the rows that draw.

    top-k keeps the k largest and those equal to the last of them; top-p then the fewest of these whose mass reaches p,
    and min-p those at least so many times as probable as the first. The number inverts the cumulative distribution, in
    the order of the vocabulary.
    """
    device = logits_NV.device
    rows_R, temperature_R, top_k_R, top_p_R, min_p_R, number_R = (
        tensor.to(device, non_blocking=True)
        for tensor in (
            draws.rows_R, draws.temperature_R, draws.top_k_R, draws.top_p_R, draws.min_p_R, draws.number_R,
        )
    )  # fmt: skip
    logits_RV = logits_NV[rows_R].float()
    weights_RV = torch.exp((logits_RV - logits_RV.amax(-1, keepdim=True)) / temperature_R[:, None])
    if draws.cuts:
        falling_RV = weights_RV.sort(-1, descending=True).values
        last_R = torch.where(top_k_R > 0, top_k_R, falling_RV.shape[1]).clamp(max=falling_RV.shape[1]) - 1
        least_R = falling_RV.gather(1, last_R[:, None])[:, 0]
        falling_RV = torch.where(falling_RV >= least_R[:, None], falling_RV, 0)
        mass_RV = falling_RV.cumsum(-1, dtype=torch.float64)
        # The first place whose mass reaches p of all.
        goal_R = mass_RV[:, -1] * top_p_R.double()
        place_R = (mass_RV < goal_R[:, None]).sum(-1).clamp(max=falling_RV.shape[1] - 1)
        nucleus_R = falling_RV.gather(1, place_R[:, None])[:, 0]
        least_R = torch.where(top_p_R < 1, torch.maximum(least_R, nucleus_R), least_R)
        least_R = torch.maximum(least_R, min_p_R)
        weights_RV = torch.where(weights_RV >= least_R[:, None], weights_RV, 0)
    upto_RV = weights_RV.cumsum(-1, dtype=torch.float64)
    goal_R1 = number_R[:, None] * upto_RV[:, -1:]
    place_R = torch.searchsorted(upto_RV, goal_R1, right=True)[:, 0]
    # Sums that were rounded in another order may fall short; the last place with a weight stands for it.
    last_R = (upto_RV < upto_RV[:, -1:]).sum(-1)
    token_R = torch.minimum(place_R, last_R)
    return torch.where(upto_RV[:, -1].isfinite(), token_R, BROKEN)
