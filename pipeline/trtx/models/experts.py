"""A mixture of experts: a router sends each token to a few MLPs (Shazeer et al., arXiv:1701.06538).

Legend: M tokens, E hidden channels, X experts, k experts of a token, R = M·k rows sorted by expert, I channels inside
an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trtx.kernels import ops
from trtx.models.blocks import ACTIVATIONS, MakeLinear, make_parameter
from trtx.models.config import ModelConfig


class Router(nn.Module):
    """Says where tokens go."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.per_token, self.normalize = config.experts_per_token, config.normalize_experts
        self.weight = make_parameter(torch.empty(config.num_experts, config.hidden_size, dtype=dtype))

    def forward(self, x_ME: Tensor) -> ops.Routing:
        return ops.route_experts(ops.linear(x_ME, self.weight), self.per_token, self.normalize)


class Experts(nn.Module):
    """Router and gated MLPs of one layer; its linears take rows that are sorted by expert, and the routing."""

    def __init__(self, config: ModelConfig, prefix: str, dtype: torch.dtype, make_linear: MakeLinear) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.expert_size
        self.activation = ACTIVATIONS[config.activation]
        self.router = Router(config, dtype)
        self.gate_up = make_linear(f"{prefix}.gate_up", hidden, 2 * size, False)
        self.down = make_linear(f"{prefix}.down", size, hidden, False)

    def forward(self, x_ME: Tensor) -> Tensor:
        routing = self.router(x_ME)
        x_RE = x_ME[routing.slots_R // self.router.per_token]
        gate_RI, up_RI = self.gate_up(x_RE, routing).chunk(2, -1)
        y_RE = self.down(self.activation(gate_RI) * up_RI, routing)
        y_MkE = y_RE[routing.places_R].unflatten(0, routing.shares_Mk.shape)
        y_ME: Tensor = (y_MkE * routing.shares_Mk[:, :, None]).sum(1).to(x_ME.dtype)
        return y_ME
