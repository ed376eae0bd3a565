"""A mixture of experts: a router sends each token to a few MLPs (Shazeer et al., arXiv:1701.06538).

Legend: M tokens, E hidden channels, X experts, k experts of a token, R = M·k rows sorted by expert, I channels inside
an expert, N outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trtx.models.blocks import ACTIVATIONS, make_parameter
from trtx.models.config import ModelConfig


@torch.library.custom_op("trtx::grouped_linear", mutates_args=())
def grouped_linear(x_RE: Tensor, weight_XNE: Tensor, counts_X: Tensor) -> Tensor:
    """x · Wᵀ [R, N], where the first counts[0] rows have the first expert's W, and so on.

    An operation of its own because its loop follows the numbers in `counts_X`: compiled programs call back into this.
    Experts without rows are not read, which is what makes a mixture cheap.
    """
    y_RN = x_RE.new_empty(x_RE.shape[0], weight_XNE.shape[1])
    start = 0
    for expert, count in enumerate(counts_X.tolist()):
        if count:
            torch.mm(x_RE[start : start + count], weight_XNE[expert].t(), out=y_RN[start : start + count])
            start += count
    return y_RN


@grouped_linear.register_fake
def _(x_RE: Tensor, weight_XNE: Tensor, counts_X: Tensor) -> Tensor:
    return x_RE.new_empty(x_RE.shape[0], weight_XNE.shape[1])


class Matrices(nn.Module):
    """Matrices of all experts, [X, N, E]."""

    def __init__(self, *shape: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = make_parameter(torch.empty(shape, dtype=dtype))


class Experts(nn.Module):
    """Router and gated MLPs of one layer."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        count, hidden, size = config.num_experts, config.hidden_size, config.expert_size
        self.per_token, self.normalize = config.experts_per_token, config.normalize_experts
        self.activation = ACTIVATIONS[config.activation]
        self.router = Matrices(count, hidden, dtype=dtype)
        self.gate_up = Matrices(count, 2 * size, hidden, dtype=dtype)
        self.down = Matrices(count, hidden, size, dtype=dtype)

    def forward(self, x_ME: Tensor) -> Tensor:
        shares_Mk, experts_Mk = self.route(x_ME)
        experts_R = experts_Mk.flatten()
        order_R = experts_R.argsort(stable=True)
        numbers_X = torch.arange(self.router.weight.shape[0], device=x_ME.device)
        counts_X = (experts_R[:, None] == numbers_X).sum(0)
        x_RE = x_ME[order_R // self.per_token]
        gate_RI, up_RI = grouped_linear(x_RE, self.gate_up.weight, counts_X).chunk(2, -1)
        y_RE = grouped_linear(self.activation(gate_RI) * up_RI, self.down.weight, counts_X)
        y_MkE = y_RE[order_R.argsort()].unflatten(0, experts_Mk.shape)
        y_ME: Tensor = (y_MkE * shares_Mk[:, :, None]).sum(1).to(x_ME.dtype)
        return y_ME

    def route(self, x_ME: Tensor) -> tuple[Tensor, Tensor]:
        """The share [M, k], float32, and the number [M, k] of the experts that each token goes to."""
        logits_MX = F.linear(x_ME, self.router.weight)
        shares_Mk, experts_Mk = logits_MX.float().softmax(-1).topk(self.per_token, dim=-1)
        if self.normalize:
            shares_Mk = shares_Mk / shares_Mk.sum(-1, keepdim=True)
        return shares_Mk, experts_Mk
