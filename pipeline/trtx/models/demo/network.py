"""A Llama in plain torch, with the parameter names of transformers' LlamaForCausalLM.

Importing transformers would cost the download step four seconds. Shape suffixes: B sequences, T tokens, H hidden,
N query heads, G key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trtx.models.demo.config import DemoConfig


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, demo: DemoConfig) -> None:
        super().__init__()
        hidden, self.head_dim = demo.hidden_size, demo.head_dim
        self.q_proj = nn.Linear(hidden, demo.num_heads * demo.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, demo.num_kv_heads * demo.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, demo.num_kv_heads * demo.head_dim, bias=False)
        self.o_proj = nn.Linear(demo.num_heads * demo.head_dim, hidden, bias=False)
        self.copies = demo.num_heads // demo.num_kv_heads

    def forward(self, x_BTH: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        batch, tokens, _ = x_BTH.shape
        q_BNTD, k_BGTD, v_BGTD = (
            projection(x_BTH).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BNTD, k_BGTD = rotate(q_BNTD, cos_TD, sin_TD), rotate(k_BGTD, cos_TD, sin_TD)
        k_BNTD, v_BNTD = (x.repeat_interleave(self.copies, dim=1) for x in (k_BGTD, v_BGTD))
        y_BNTD = F.scaled_dot_product_attention(q_BNTD, k_BNTD, v_BNTD, is_causal=True)
        y_BTH: Tensor = self.o_proj(y_BNTD.transpose(1, 2).reshape(batch, tokens, -1))
        return y_BTH


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, demo: DemoConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(demo.hidden_size, demo.intermediate_size, bias=False)
        self.up_proj = nn.Linear(demo.hidden_size, demo.intermediate_size, bias=False)
        self.down_proj = nn.Linear(demo.intermediate_size, demo.hidden_size, bias=False)

    def forward(self, x_BTH: Tensor) -> Tensor:
        y_BTH: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTH)) * self.up_proj(x_BTH))
        return y_BTH


class Layer(nn.Module):
    """Attention and MLP, each after its norm, each added to its input."""

    def __init__(self, demo: DemoConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(demo.hidden_size, eps=demo.norm_epsilon)
        self.self_attn = Attention(demo)
        self.post_attention_layernorm = nn.RMSNorm(demo.hidden_size, eps=demo.norm_epsilon)
        self.mlp = Mlp(demo)

    def forward(self, x_BTH: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        x_BTH = x_BTH + self.self_attn(self.input_layernorm(x_BTH), cos_TD, sin_TD)
        y_BTH: Tensor = x_BTH + self.mlp(self.post_attention_layernorm(x_BTH))
        return y_BTH


class Llama(nn.Module):
    """Tokens to logits; the embedding is also the output matrix."""

    def __init__(self, demo: DemoConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(demo.vocab_size, demo.hidden_size)
        self.layers = nn.ModuleList(Layer(demo) for _ in range(demo.num_layers))
        self.norm = nn.RMSNorm(demo.hidden_size, eps=demo.norm_epsilon)
        cos_TD, sin_TD = rope_tables(demo)
        self.register_buffer("cos_TD", cos_TD, persistent=False)
        self.register_buffer("sin_TD", sin_TD, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        cos_TD, sin_TD = self.get_buffer("cos_TD")[:length], self.get_buffer("sin_TD")[:length]
        x_BTH = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x_BTH = layer(x_BTH, cos_TD, sin_TD)
        logits_BTV: Tensor = F.linear(self.norm(x_BTH), self.embed_tokens.weight)
        return logits_BTV


def rotate(x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary position embedding in the half-split form that Hugging Face checkpoints use (arXiv 2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD


def rope_tables(demo: DemoConfig) -> tuple[Tensor, Tensor]:
    """cos and sin by position, [max_position_embeddings, head_dim], the second half repeating the first."""
    exponents = torch.arange(0, demo.head_dim, 2) / demo.head_dim
    angles = torch.outer(torch.arange(demo.max_position_embeddings).float(), demo.rope_theta**-exponents)
    angles_TD = torch.cat((angles, angles), dim=-1)
    return angles_TD.cos(), angles_TD.sin()
