"""The Llama decoder over a paged key-value pool: one module behind the prefill and decode programs.

Legend: B sequences, T tokens per sequence (padded), M = B·T, W blocks per table, C = W·S context slots,
N selected rows, P blocks in a pool, S tokens per block, H query heads, G key-value heads, D channels per head,
E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trtx.models.config import ModelConfig
from trtx.models.formats import KvCacheFormat
from trtx.models.layout import Shard
from trtx.models.rope import make_rotation, rotate

# name, in_features, out_features, bias → a module from [..., in_features] to [..., out_features]
MakeLinear = Callable[[str, int, int, bool], nn.Module]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest finite e4m3 number; conversion beyond it would give NaN


@dataclass(frozen=True)
class Step:
    """What every layer of one call shares.

    `blocks_M` and `offsets_M` say where each token's key and value go; `bias_B1TC` is 0 where a token may look
    and minus infinity elsewhere.
    """

    cos_BT1D: Tensor
    sin_BT1D: Tensor
    blocks_M: Tensor
    offsets_M: Tensor
    tables_BW: Tensor
    bias_B1TC: Tensor


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
        self.quantized_kv = kv_cache == "fp8"
        if self.quantized_kv:
            self.k_scale = _parameter(torch.empty((), dtype=torch.float32))
            self.v_scale = _parameter(torch.empty((), dtype=torch.float32))

    def forward(self, x_BTE: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Tensor:
        batch, length, _ = x_BTE.shape
        qkv = self.qkv(x_BTE).view(batch, length, -1, self.head_dim)
        q_BTHD, k_BTGD, v_BTGD = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
        q_BTHD = rotate(q_BTHD, step.cos_BT1D, step.sin_BT1D)
        k_BTGD = rotate(k_BTGD, step.cos_BT1D, step.sin_BT1D)
        where = (step.blocks_M, step.offsets_M)
        k_pool_PSGD.index_put_(where, self._to_pool(k_BTGD, "k").flatten(0, 1))
        v_pool_PSGD.index_put_(where, self._to_pool(v_BTGD, "v").flatten(0, 1))
        k_BGCD = self._from_pool(k_pool_PSGD[step.tables_BW], "k", x_BTE.dtype).flatten(1, 2).transpose(1, 2)
        v_BGCD = self._from_pool(v_pool_PSGD[step.tables_BW], "v", x_BTE.dtype).flatten(1, 2).transpose(1, 2)
        y_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2), k_BGCD, v_BGCD, attn_mask=step.bias_B1TC, enable_gqa=self.heads != self.kv_heads
        )
        y: Tensor = self.out(y_BHTD.transpose(1, 2).flatten(2))
        return y

    def _to_pool(self, x: Tensor, which: str) -> Tensor:
        if not self.quantized_kv:
            return x
        scale = self.k_scale if which == "k" else self.v_scale
        return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)

    def _from_pool(self, x: Tensor, which: str, dtype: torch.dtype) -> Tensor:
        if not self.quantized_kv:
            return x
        scale = self.k_scale if which == "k" else self.v_scale
        return (x.view(FP8).float() * scale).to(dtype)


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

    def forward(self, x_BTE: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Tensor:
        x_BTE = x_BTE + self.attention(self.attention_norm(x_BTE), step, k_pool_PSGD, v_pool_PSGD)
        y_BTE: Tensor = x_BTE + self.mlp(self.mlp_norm(x_BTE))
        return y_BTE


class Llama(nn.Module):
    """One rank's share of a Llama; the parameter names are those of its rank file.

    A rank that is both first and last stage offers `prefill` and `decode`; others are driven by
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
    ) -> None:
        super().__init__()
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

    def prefill(
        self, tokens_BT: Tensor, positions_BT: Tensor, block_tables_BW: Tensor, select_N: Tensor, *pools: Tensor
    ) -> Tensor:
        """Logits, float32 [N, V], of the chosen rows of the flattened [B·T] grid.

        `pools` are L key pools and then L value pools, [P, S, G, D] each, changed in place. Tokens see all that their
        block table holds up to their own position. A padding token has position -1: it writes to the null block 0.
        """
        x_BTE = self._forward(tokens_BT, positions_BT, block_tables_BW, pools)
        return self.logits(x_BTE.flatten(0, 1)[select_N])

    def decode(self, tokens_B: Tensor, positions_B: Tensor, block_tables_BW: Tensor, *pools: Tensor) -> Tensor:
        """Logits, float32 [B, V], of one token per sequence; otherwise as `prefill`."""
        x_B1E = self._forward(tokens_B[:, None], positions_B[:, None], block_tables_BW, pools)
        return self.logits(x_B1E[:, 0])

    def _forward(
        self, tokens_BT: Tensor, positions_BT: Tensor, block_tables_BW: Tensor, pools: tuple[Tensor, ...]
    ) -> Tensor:
        step = self.start(positions_BT, block_tables_BW, tokens_per_block=pools[0].shape[1])
        return self.run_layers(self.embed(tokens_BT), step, pools)

    def start(self, positions_BT: Tensor, block_tables_BW: Tensor, tokens_per_block: int) -> Step:
        """What the layers need to know about positions, computed once per call."""
        cos_BTD, sin_BTD = self.rope(positions_BT)
        # A padding token looks at one slot, so that its softmax is finite: NaN in block 0 would reach every
        # sequence whose table is padded with block 0, because 0 · NaN is NaN.
        seen_BT = positions_BT.clamp(min=0)
        is_real_BT = positions_BT >= 0
        blocks_BT = block_tables_BW.gather(1, seen_BT // tokens_per_block) * is_real_BT
        slots_C = torch.arange(block_tables_BW.shape[1] * tokens_per_block, device=positions_BT.device)
        hidden_BTC = slots_C > seen_BT[:, :, None]
        bias_BTC = torch.zeros(hidden_BTC.shape, dtype=self.dtype, device=positions_BT.device)
        return Step(
            cos_BT1D=cos_BTD[:, :, None],
            sin_BT1D=sin_BTD[:, :, None],
            blocks_M=blocks_BT.flatten(),
            offsets_M=(seen_BT % tokens_per_block).flatten(),
            tables_BW=block_tables_BW,
            bias_B1TC=bias_BTC.masked_fill(hidden_BTC, float("-inf"))[:, None],
        )

    def run_layers(self, x_BTE: Tensor, step: Step, pools: tuple[Tensor, ...]) -> Tensor:
        """Run this rank's layers; `pools` are theirs only."""
        count = len(self.layers)
        for index, layer in enumerate(self.layers.values()):
            x_BTE = layer(x_BTE, step, pools[index], pools[count + index])
        return x_BTE

    def logits(self, x_NE: Tensor) -> Tensor:
        """Logits, float32 [N, V], of hidden states that left the last layer."""
        x_NE = self.final_norm(x_NE)
        logits_NV: Tensor = F.linear(x_NE, self.embed.weight) if self.tied else self.lm_head(x_NE)
        return logits_NV.float()


def _parameter(data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)
