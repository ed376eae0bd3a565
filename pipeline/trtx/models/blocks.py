"""Parts that decoders are put together from. Their parameters are tensors of models/layout.py.

Legend: M tokens, E hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trtx.models.architecture import Norm
from trtx.models.config import ModelConfig, uses_long_factors
from trtx.models.layout import RopeTable, Shard
from trtx.models.read_config import Activation
from trtx.models.rope import attention_factor, make_rotation

# name, in_features, out_features, bias → a module from [..., in_features] to [..., out_features]
MakeLinear = Callable[[str, int, int, bool], nn.Module]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class RmsNorm(nn.Module):
    """x / rms(x) · weight, in float32 inside (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, size: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = make_parameter(torch.empty(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normalize(x).to(x.dtype)

    def normalize(self, x: Tensor) -> Tensor:
        y = x.float()
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)


class RmsNormPlusOne(RmsNorm):
    """Gemma's: the stored weight is what to add to 1, and rounding comes after it."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.normalize(x) * (1.0 + self.weight.float())).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation · weight + bias (Ba et al., arXiv:1607.06450)."""

    def __init__(self, size: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = make_parameter(torch.empty(size, dtype=dtype))
        self.bias = make_parameter(torch.empty(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


NORMS: dict[Norm, Callable[[int, float, torch.dtype], nn.Module]] = {
    "rms": RmsNorm,
    "rms_plus_one": RmsNormPlusOne,
    "layer": LayerNorm,
}


class Embedding(nn.Module):
    """Rows of a table, times `scale`; the table also serves as output projection when the model ties them."""

    def __init__(self, rows: int, size: int, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = make_parameter(torch.empty(rows, size, dtype=dtype))
        # Rounded to the dtype before it multiplies, as in Gemma's own code.
        self.scale = torch.tensor(scale, dtype=dtype, device="cpu").item()

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.weight)
        return x if self.scale == 1.0 else x * self.scale


class Rope(nn.Module):
    """Holds the frequencies as a weight, so that a program serves every base and most scalings of its shape."""

    def __init__(self, table: RopeTable, max_seq_len: int) -> None:
        super().__init__()
        self.inv_freq = make_parameter(torch.empty(table.shape, dtype=torch.float32))
        self.factor = attention_factor(table.scaling)
        self.row = int(uses_long_factors(table.scaling, max_seq_len)) if len(table.shape) == 2 else None

    def forward(self, positions_M: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, float32 [M, 1, pairs]."""
        inv_freq = self.inv_freq if self.row is None else self.inv_freq[self.row]
        cos, sin = make_rotation(positions_M, inv_freq, self.factor)
        return cos[:, None], sin[:, None]


class GatedMlp(nn.Module):
    """down(f(gate(x)) · up(x)), gate and up fused (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, shard: Shard, prefix: str, make_linear: MakeLinear) -> None:
        super().__init__()
        middle = len(shard.intermediate)
        self.activation = ACTIVATIONS[config.activation]
        self.gate_up = make_linear(f"{prefix}.gate_up", config.hidden_size, 2 * middle, config.mlp_bias)
        self.down = make_linear(f"{prefix}.down", middle, config.hidden_size, config.mlp_bias)

    def forward(self, x_ME: Tensor) -> Tensor:
        gate, up = self.gate_up(x_ME).chunk(2, -1)
        y_ME: Tensor = self.down(self.activation(gate) * up)
        return y_ME


class Mlp(nn.Module):
    """down(f(up(x)))."""

    def __init__(self, config: ModelConfig, shard: Shard, prefix: str, make_linear: MakeLinear) -> None:
        super().__init__()
        middle = len(shard.intermediate)
        self.activation = ACTIVATIONS[config.activation]
        self.up = make_linear(f"{prefix}.up", config.hidden_size, middle, config.mlp_bias)
        self.down = make_linear(f"{prefix}.down", middle, config.hidden_size, config.mlp_bias)

    def forward(self, x_ME: Tensor) -> Tensor:
        y_ME: Tensor = self.down(self.activation(self.up(x_ME)))
        return y_ME


def make_parameter(data: Tensor) -> nn.Parameter:
    """A weight of an engine: nothing is trained."""
    return nn.Parameter(data, requires_grad=False)
