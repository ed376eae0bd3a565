"""The Llama decoder over a paged key-value pool: the module behind the program `step`.

Legend: M tokens of a step, all its sequences flattened without padding; B sequences, W blocks per table, N selected
rows, P blocks in a pool, S tokens per block, H query heads, G key-value heads, D channels per head, E hidden,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trtx.models.attention import Attend, AttentionKind, make_attention, write_pool
from trtx.models.config import ModelConfig
from trtx.models.formats import KvCacheFormat
from trtx.models.layout import Shard
from trtx.models.rope import make_rotation, rotate

# name, in_features, out_features, bias → a module from [..., in_features] to [..., out_features]
MakeLinear = Callable[[str, int, int, bool], nn.Module]


@dataclass(frozen=True)
class Step:
    """What every layer of one call shares. `slots_M` says where each token's key and value go: block · S + offset."""

    cos_M1D: Tensor
    sin_M1D: Tensor
    slots_M: Tensor
    attend: Attend


class RmsNorm(nn.Module):
    """x / rms(x) · weight, in float32 inside (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, size: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = _parameter(torch.empty(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * y.to(x.dtype)


class Embedding(nn.Module):
    """Rows of a table; the table also serves as output projection when the model ties them."""

    def __init__(self, rows: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _parameter(torch.empty(rows, size, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class Rope(nn.Module):
    """Holds the frequencies as a weight, so that a program serves every base and scaling of its shape."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.inv_freq = _parameter(torch.empty(head_dim // 2, dtype=torch.float32))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return make_rotation(positions, self.inv_freq)


class Attention(nn.Module):
    """Grouped-query attention that writes its keys and values into the pool and reads all context from there."""

    def __init__(
        self, config: ModelConfig, shard: Shard, kv_cache: KvCacheFormat, prefix: str, make_linear: MakeLinear
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = len(shard.heads), len(shard.kv_heads), config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = make_linear(f"{prefix}.qkv", config.hidden_size, width, config.attention_bias)
        self.out = make_linear(f"{prefix}.out", self.heads * self.head_dim, config.hidden_size, config.attention_bias)
        self.k_scale = self.v_scale = None
        if kv_cache != "auto":
            self.k_scale = _parameter(torch.empty((), dtype=torch.float32))
            self.v_scale = _parameter(torch.empty((), dtype=torch.float32))

    def forward(self, x_ME: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Tensor:
        qkv_MXD = self.qkv(x_ME).unflatten(1, (-1, self.head_dim))
        q_MHD, k_MGD, v_MGD = qkv_MXD.split([self.heads, self.kv_heads, self.kv_heads], 1)
        q_MHD, k_MGD = (rotate(x, step.cos_M1D, step.sin_M1D) for x in (q_MHD, k_MGD))
        write_pool(k_pool_PSGD, step.slots_M, k_MGD, self.k_scale)
        write_pool(v_pool_PSGD, step.slots_M, v_MGD, self.v_scale)
        y_MHD = step.attend(
            q_MHD,
            k_pool_PSGD,
            v_pool_PSGD,
            scale=self.head_dim**-0.5,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )
        y: Tensor = self.out(y_MHD.flatten(1))
        return y


class Mlp(nn.Module):
    """down(silu(gate(x)) · up(x)), gate and up fused (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, shard: Shard, prefix: str, make_linear: MakeLinear) -> None:
        super().__init__()
        middle = len(shard.intermediate)
        self.gate_up = make_linear(f"{prefix}.gate_up", config.hidden_size, 2 * middle, config.mlp_bias)
        self.down = make_linear(f"{prefix}.down", middle, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class Layer(nn.Module):
    """One decoder layer with pre-normalization and residuals."""

    def __init__(
        self,
        config: ModelConfig,
        shard: Shard,
        kv_cache: KvCacheFormat,
        dtype: torch.dtype,
        index: int,
        make_linear: MakeLinear,
    ) -> None:
        super().__init__()
        prefix = f"layers.{index}"
        self.attention_norm = RmsNorm(config.hidden_size, config.norm_epsilon, dtype)
        self.attention = Attention(config, shard, kv_cache, f"{prefix}.attention", make_linear)
        self.mlp_norm = RmsNorm(config.hidden_size, config.norm_epsilon, dtype)
        self.mlp = Mlp(config, shard, f"{prefix}.mlp", make_linear)

    def forward(self, x_ME: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Tensor:
        x_ME = x_ME + self.attention(self.attention_norm(x_ME), step, k_pool_PSGD, v_pool_PSGD)
        y_ME: Tensor = x_ME + self.mlp(self.mlp_norm(x_ME))
        return y_ME


class Llama(nn.Module):
    """One rank's share of a Llama; the parameter names are those of its rank file.

    A rank that is both first and last stage offers `step`; others are driven by
    `start`, `embed`, `run_layers` and `logits`. With tensor parallelism the outputs of `attention.out` and
    `mlp.down` are partial sums and `logits` are this rank's columns: whoever builds the module
    has `make_linear` return modules that reduce.
    """

    def __init__(
        self,
        config: ModelConfig,
        shard: Shard,
        kv_cache: KvCacheFormat,
        dtype: torch.dtype,
        make_linear: MakeLinear,
        attention: AttentionKind = "gather",
    ) -> None:
        super().__init__()
        self.attention = attention
        tied = config.tie_word_embeddings
        if shard.is_first or (shard.is_last and tied):
            self.embed = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.ModuleDict(
            {str(i): Layer(config, shard, kv_cache, dtype, i, make_linear) for i in shard.layers}
        )
        if shard.is_last:
            self.final_norm = RmsNorm(config.hidden_size, config.norm_epsilon, dtype)
            if not tied:
                self.lm_head = make_linear("lm_head", config.hidden_size, len(shard.vocab), False)
        self.tied = tied
        self.dtype = dtype
        self.rope = Rope(config.head_dim)

    def step(
        self,
        tokens_M: Tensor,
        positions_M: Tensor,
        slots_M: Tensor,
        block_tables_BW: Tensor,
        query_starts_B1: Tensor,
        context_lens_B: Tensor,
        select_N: Tensor,
        *pools: Tensor,
    ) -> Tensor:
        """Logits, float32 [N, V], of the tokens in the chosen rows of [M].

        A sequence may bring one token (decode) or many (a chunk of its prompt). Sequence b owns the tokens
        query_starts[b] to query_starts[b + 1] - 1; its last one is at position context_lens[b] - 1 and sees that
        many keys. A token's key and value go to slot block · S + offset; slots of block 0 are for padding.
        `pools` are L key pools and then L value pools, [P, S, G, D] each, changed in place.
        Tables, starts and lengths are int32, all else int64.
        """
        size = pools[0].shape[1]
        step = self.start(positions_M, slots_M, block_tables_BW, query_starts_B1, context_lens_B, size)
        return self.logits(self.run_layers(self.embed(tokens_M), step, pools)[select_N])

    def start(
        self,
        positions_M: Tensor,
        slots_M: Tensor,
        block_tables_BW: Tensor,
        query_starts_B1: Tensor,
        context_lens_B: Tensor,
        tokens_per_block: int,
    ) -> Step:
        """What the layers need to know about positions, computed once per call."""
        cos_MD, sin_MD = self.rope(positions_M)
        attend = make_attention(
            self.attention, block_tables_BW, query_starts_B1, context_lens_B, positions_M.shape[0], tokens_per_block
        )
        return Step(cos_M1D=cos_MD[:, None], sin_M1D=sin_MD[:, None], slots_M=slots_M, attend=attend)

    def run_layers(self, x_ME: Tensor, step: Step, pools: tuple[Tensor, ...]) -> Tensor:
        """Run this rank's layers; `pools` are theirs only."""
        count = len(self.layers)
        for index, layer in enumerate(self.layers.values()):
            x_ME = layer(x_ME, step, pools[index], pools[count + index])
        return x_ME

    def logits(self, x_NE: Tensor) -> Tensor:
        """Logits, float32 [N, V], of hidden states that left the last layer."""
        x_NE = self.final_norm(x_NE)
        logits_NV: Tensor = F.linear(x_NE, self.embed.weight) if self.tied else self.lm_head(x_NE)
        return logits_NV.float()


def _parameter(data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)
