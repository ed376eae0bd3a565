"""Every architecture's decoder over a paged key-value pool: the module behind the program `step`.

Legend: M tokens of a step, all its sequences flattened without padding; B sequences, W blocks per table, N selected
rows, P blocks in a pool, S tokens per block, H query heads, G key-value heads, D channels per head, E hidden,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trtx.kernels import ops
from trtx.models.architecture import Architecture
from trtx.models.attention import Attend, AttentionKind, Scoring, make_attention, write_pool
from trtx.models.blocks import NORMS, Embedding, GatedMlp, MakeLinear, Mlp, Rope, make_parameter
from trtx.models.config import ModelConfig, load_architecture
from trtx.models.experts import Experts
from trtx.models.formats import KvCacheFormat
from trtx.models.layout import Shard, rope_tables
from trtx.models.rope import rotate


@dataclass(frozen=True)
class Build:
    """What the modules of one rank are made from."""

    config: ModelConfig
    names: Architecture
    shard: Shard
    kv_cache: KvCacheFormat
    dtype: torch.dtype
    make_linear: MakeLinear

    def make_norm(self, size: int) -> nn.Module:
        return NORMS[self.names.norm](size, self.config.norm_epsilon, self.dtype)


@dataclass(frozen=True)
class Step:
    """What every layer of one call shares.

    `slots_M` says where each token's key and value go: block · S + offset. `rotations` are cosine and sine,
    [M, 1, pairs], by the name of the RoPE.
    """

    rotations: dict[str, tuple[Tensor, Tensor]]
    slots_M: Tensor
    attend: Attend


class Attention(nn.Module):
    """Grouped-query attention that writes its keys and values into the pool and reads all context from there."""

    def __init__(self, build: Build, layer: int, prefix: str) -> None:
        super().__init__()
        config, shard = build.config, build.shard
        self.heads, self.kv_heads, self.head_dim = len(shard.heads), len(shard.kv_heads), config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        out_bias = config.attention_bias and build.names.out_has_bias
        self.qkv = build.make_linear(f"{prefix}.qkv", config.hidden_size, width, config.attention_bias)
        self.out = build.make_linear(f"{prefix}.out", self.heads * self.head_dim, config.hidden_size, out_bias)
        self.q_norm = self.k_norm = None
        if build.names.head_norms:
            self.q_norm, self.k_norm = build.make_norm(self.head_dim), build.make_norm(self.head_dim)
        self.k_scale = self.v_scale = None
        if build.kv_cache != "auto":
            self.k_scale = make_parameter(torch.empty((), dtype=torch.float32))
            self.v_scale = make_parameter(torch.empty((), dtype=torch.float32))
        self.rope = "local_rope" if config.has_local_rope(layer) else "rope"
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.window, self.softcap = config.window(layer), config.attention_softcap

    @property
    def scoring(self) -> Scoring:
        """How this layer looks at its pools."""
        return Scoring(self.scale, self.window, self.softcap, self.k_scale, self.v_scale)

    def forward(self, x_ME: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Tensor:
        qkv_MXD = self.qkv(x_ME).unflatten(1, (-1, self.head_dim))
        q_MHD, k_MGD, v_MGD = qkv_MXD.split([self.heads, self.kv_heads, self.kv_heads], 1)
        if self.q_norm is not None and self.k_norm is not None:
            q_MHD, k_MGD = self.q_norm(q_MHD), self.k_norm(k_MGD)
        if self.rope in step.rotations:
            q_MHD, k_MGD = (rotate(x, *step.rotations[self.rope]) for x in (q_MHD, k_MGD))
        write_pool(k_pool_PSGD, step.slots_M, k_MGD, self.k_scale)
        write_pool(v_pool_PSGD, step.slots_M, v_MGD, self.v_scale)
        y_MHD = step.attend(q_MHD, k_pool_PSGD, v_pool_PSGD, self.scoring)
        y_ME: Tensor = self.out(y_MHD.flatten(1))
        return y_ME


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it, maybe one after it, and a residual around it."""

    def __init__(self, build: Build, index: int) -> None:
        super().__init__()
        config, prefix = build.config, f"layers.{index}"
        self.parallel = config.parallel_residual
        norms = {name: build.make_norm(config.hidden_size) for name, _ in build.names.layer_norms}
        self.attention_norm, self.attention_post_norm = norms["attention_norm"], norms.get("attention_post_norm")
        self.mlp_norm, self.mlp_post_norm = norms["mlp_norm"], norms.get("mlp_post_norm")
        self.attention = Attention(build, index, f"{prefix}.attention")
        self.mlp: nn.Module
        if config.has_experts(index):
            self.mlp = Experts(config, f"{prefix}.mlp", build.dtype, build.make_linear)
        else:
            mlp = GatedMlp if build.names.gated else Mlp
            self.mlp = mlp(config, build.shard, f"{prefix}.mlp", build.make_linear)

    def forward(self, x_ME: Tensor, step: Step, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor) -> Tensor:
        attended_ME = self.attention(self.attention_norm(x_ME), step, k_pool_PSGD, v_pool_PSGD)
        if self.attention_post_norm is not None:
            attended_ME = self.attention_post_norm(attended_ME)
        if self.parallel:
            summed_ME: Tensor = self.mlp(self.mlp_norm(x_ME)) + attended_ME + x_ME
            return summed_ME
        x_ME = x_ME + attended_ME
        y_ME: Tensor = self.mlp(self.mlp_norm(x_ME))
        if self.mlp_post_norm is not None:
            y_ME = self.mlp_post_norm(y_ME)
        return x_ME + y_ME


class Decoder(nn.Module):
    """One rank's share of a model; the parameter names are those of its rank file.

    A rank that is both first and last stage offers `step`; others are driven by `start`, `embed_tokens`, `run_layers`
    and `logits`. With tensor parallelism the products of `attention.out` and `mlp.down` are partial sums and those of
    `lm_head` this rank's columns: `make_linear` returns modules that meet the other ranks and give all of it.
    """

    layer_type: type[Layer] = Layer

    def __init__(
        self,
        config: ModelConfig,
        shard: Shard,
        kv_cache: KvCacheFormat,
        dtype: torch.dtype,
        make_linear: MakeLinear,
        max_seq_len: int,
        attention: AttentionKind = "gather",
    ) -> None:
        super().__init__()
        names = load_architecture(config.architecture)
        build = Build(config, names, shard, kv_cache, dtype, make_linear)
        self.attention, self.tied, self.logit_softcap = attention, config.tie_word_embeddings, config.logit_softcap
        if shard.is_first or (shard.is_last and self.tied):
            self.embed = Embedding(config.vocab_size, config.hidden_size, dtype, config.embedding_scale)
        self.positions = None
        if shard.is_first and names.positions:
            self.positions = Embedding(config.max_position_embeddings, config.hidden_size, dtype)
        self.layers = nn.ModuleDict({str(layer): self.layer_type(build, layer) for layer in shard.layers})
        if shard.is_last:
            self.final_norm = build.make_norm(config.hidden_size)
            if not self.tied:
                self.lm_head = make_linear("lm_head", config.hidden_size, len(shard.vocab), False)
        tables = rope_tables(config, shard)
        self.ropes = [table.name for table in tables]
        for table in tables:
            setattr(self, table.name, Rope(table, max_seq_len))

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
        return self.run_all(self.embed_tokens(tokens_M, positions_M), step, select_N, pools)

    def run_all(self, x_ME: Tensor, step: Step, select_N: Tensor, pools: tuple[Tensor, ...]) -> Tensor:
        """Logits of the chosen rows, from what the first layer takes."""
        return self.logits(self.run_layers(x_ME, step, pools)[select_N])

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
        rotations = {name: getattr(self, name)(positions_M) for name in self.ropes}
        attend = make_attention(
            self.attention, block_tables_BW, query_starts_B1, context_lens_B, positions_M.shape[0], tokens_per_block
        )
        return Step(rotations, slots_M, attend)

    def embed_tokens(self, tokens_M: Tensor, positions_M: Tensor) -> Tensor:
        """What the first layer takes, [M, E]."""
        x_ME: Tensor = self.embed(tokens_M)
        return x_ME if self.positions is None else x_ME + self.positions(positions_M)

    def run_layers(self, x_ME: Tensor, step: Step, pools: tuple[Tensor, ...]) -> Tensor:
        """Run this rank's layers; `pools` are theirs only."""
        count = len(self.layers)
        for index, layer in enumerate(self.layers.values()):
            x_ME = layer(x_ME, step, pools[index], pools[count + index])
        return x_ME

    def logits(self, x_NE: Tensor) -> Tensor:
        """Logits, float32 [N, V], of hidden states that left the last layer."""
        return self.project(self.final_norm(x_NE))

    def multiply_head(self, x_NE: Tensor) -> Tensor:
        """The product with the head, or with the embedding that it is tied to, [N, V] in the model's type."""
        projected_NV: Tensor = ops.linear(x_NE, self.embed.weight) if self.tied else self.lm_head(x_NE)
        return projected_NV

    def project(self, x_NE: Tensor) -> Tensor:
        """Logits, float32 [N, V], of hidden states after the last norm."""
        logits_NV = self.multiply_head(x_NE).float()
        return self.logit_softcap * torch.tanh(logits_NV / self.logit_softcap) if self.logit_softcap else logits_NV
