"""Attention over the paged key-value pools, in two forms that compute the same.

`native` is an operator of the kernel library, which reads every key and value once, from where it lies. `gather` is
plain torch: pad the tokens to a grid, gather each sequence's blocks, attend under a mask. It copies the whole context
of every sequence in every layer and is the reference that the other form is held to.

Legend: M tokens of a step, flattened without padding; B sequences, T tokens of the longest one; W blocks per table,
S tokens per block, C = W·S context slots, P blocks in a pool; H query heads, G key-value heads, D channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trtx.kernels import ops, reference

AttentionKind = Literal["native", "gather"]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest finite e4m3 number; conversion beyond it would give NaN


@dataclass(frozen=True)
class Projections:
    """A step's queries, keys and values as one product left them, [M, (H + 2 G)·D], and what is to be done with them.

    They are multiplied by scale [(H + 2 G)·D], queries and keys rotated by cosine and sine, [M, 1, pairs] in float32,
    and keys and values put into the pools at `slots_M`.
    """

    qkv: Tensor
    scale: Tensor | None
    cos: Tensor
    sin: Tensor
    slots_M: Tensor


@dataclass(frozen=True)
class Scoring:
    """How a layer's queries look at keys, and what its pools are multiplied by.

    A token sees itself and all before it, of these only the last `window` (itself counted) unless that is 0. Scores are
    q·k·scale, and softcap·tanh(score / softcap) unless `softcap` is 0. `k_scale` and `v_scale` are float32 scalars that
    multiply fp8 and int8 pools.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


class Attend(Protocol):
    """Attention of one step's tokens over everything that their sequences have in the pools, theirs included."""

    def __call__(self, q_MHD: Tensor, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor, scoring: Scoring) -> Tensor:
        """[M, H, D] of q's dtype from q [M, H, D] and pools [P, S, G, D]."""
        ...

    def rotate_and_attend(
        self,
        projections: Projections,
        k_pool_PSGD: Tensor,
        v_pool_PSGD: Tensor,
        scoring: Scoring,
        y_scale: Tensor | None = None,
    ) -> Tensor:
        """The same from the step's projections, which go into the pools; with `y_scale` divided by it, as e4m3."""
        ...


class NativeAttention:
    """The kernel library's operator over the tables of one step."""

    def __init__(self, block_tables_BW: Tensor, query_starts_B1: Tensor, context_lens_B: Tensor) -> None:
        self._batch = (block_tables_BW, query_starts_B1, context_lens_B)

    def __call__(self, q_MHD: Tensor, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor, scoring: Scoring) -> Tensor:
        return ops.paged_attention(q_MHD, k_pool_PSGD, v_pool_PSGD, *self._batch, **vars(scoring))

    def rotate_and_attend(
        self,
        projections: Projections,
        k_pool_PSGD: Tensor,
        v_pool_PSGD: Tensor,
        scoring: Scoring,
        y_scale: Tensor | None = None,
    ) -> Tensor:
        return ops.rotate_and_attend(
            projections.qkv,
            projections.cos,
            projections.sin,
            projections.slots_M,
            k_pool_PSGD,
            v_pool_PSGD,
            *self._batch,
            qkv_scale=projections.scale,
            y_scale=y_scale,
            **vars(scoring),
        )


class GatherAttention:
    """The plain form. Made once per step, so that layers share what depends on positions only."""

    def __init__(
        self,
        block_tables_BW: Tensor,
        query_starts_B1: Tensor,
        context_lens_B: Tensor,
        num_tokens: int,
        tokens_per_block: int,
    ) -> None:
        lengths_B = query_starts_B1[1:] - query_starts_B1[:-1]
        longest = lengths_B.max().item()
        # The compiler cannot know these of a number that it reads from a tensor.
        torch._check(longest >= 1)  # type: ignore[no-untyped-call]
        torch._check(longest <= num_tokens)  # type: ignore[no-untyped-call]
        device = block_tables_BW.device
        columns_T = torch.arange(longest, device=device)
        # Cells of the grid beyond a sequence's end hold some token, whose result nobody reads. They look
        # at slot 0 at least, so that their softmax is finite.
        self._rows_BT = (query_starts_B1[:-1, None] + columns_T).clamp(max=num_tokens - 1)
        positions_BT = ((context_lens_B - lengths_B)[:, None] + columns_T).clamp(min=0)
        tokens_M = torch.arange(num_tokens, device=device)
        self._sequence_M = (tokens_M[:, None] >= query_starts_B1[1:]).sum(1)
        self._column_M = tokens_M - query_starts_B1[self._sequence_M]
        slots_C = torch.arange(block_tables_BW.shape[1] * tokens_per_block, device=device)
        self._distance_BTC = positions_BT[:, :, None] - slots_C
        self._tables_BW = block_tables_BW
        self._biases: dict[int, Tensor] = {}

    def __call__(self, q_MHD: Tensor, k_pool_PSGD: Tensor, v_pool_PSGD: Tensor, scoring: Scoring) -> Tensor:
        q_BHTD = q_MHD[self._rows_BT].transpose(1, 2)
        k_BGCD = self._read(k_pool_PSGD, scoring.k_scale, q_MHD.dtype)
        v_BGCD = self._read(v_pool_PSGD, scoring.v_scale, q_MHD.dtype)
        bias_B1TC = self._bias(scoring.window, q_MHD.dtype)
        y_BHTD = (
            _attend_capped(q_BHTD, k_BGCD, v_BGCD, bias_B1TC, scoring.scale, scoring.softcap)
            if scoring.softcap
            else F.scaled_dot_product_attention(
                q_BHTD,
                k_BGCD,
                v_BGCD,
                attn_mask=bias_B1TC,
                scale=scoring.scale,
                enable_gqa=q_BHTD.shape[1] != k_BGCD.shape[1],
            )
        )
        return y_BHTD.transpose(1, 2)[self._sequence_M, self._column_M]

    def rotate_and_attend(
        self,
        projections: Projections,
        k_pool_PSGD: Tensor,
        v_pool_PSGD: Tensor,
        scoring: Scoring,
        y_scale: Tensor | None = None,
    ) -> Tensor:
        q_MHD = reference.rotate_and_store(
            projections.qkv,
            projections.scale,
            projections.cos,
            projections.sin,
            projections.slots_M,
            k_pool_PSGD,
            v_pool_PSGD,
            scoring.k_scale,
            scoring.v_scale,
        )
        return reference.to_e4m3(self(q_MHD, k_pool_PSGD, v_pool_PSGD, scoring), y_scale)

    def _bias(self, window: int, dtype: torch.dtype) -> Tensor:
        """0 where a token may look and minus infinity elsewhere."""
        if window not in self._biases:
            hidden_BTC = self._distance_BTC < 0
            if window:
                hidden_BTC = hidden_BTC | (self._distance_BTC >= window)
            zeros_BTC = torch.zeros(hidden_BTC.shape, dtype=dtype, device=hidden_BTC.device)
            self._biases[window] = zeros_BTC.masked_fill(hidden_BTC, float("-inf"))[:, None]
        return self._biases[window]

    def _read(self, pool_PSGD: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        x_BGCD = pool_PSGD[self._tables_BW].flatten(1, 2).transpose(1, 2)
        if scale is None:
            return x_BGCD
        x_BGCD = x_BGCD if x_BGCD.dtype == torch.int8 else x_BGCD.view(FP8)
        return (x_BGCD.float() * scale).to(dtype)


def write_pool(pool_PSGD: Tensor, slots_M: Tensor, x_MGD: Tensor, scale: Tensor | None) -> None:
    """Put keys or values of a step's tokens into a pool, in place; with a `scale`, divided by it, as int8 or fp8."""
    size = pool_PSGD.shape[1]
    numbers_MGD = reference.to_pool(x_MGD, scale, pool_PSGD.dtype)
    pool_PSGD.index_put_((slots_M // size, slots_M % size), numbers_MGD)


def make_attention(
    kind: AttentionKind,
    block_tables_BW: Tensor,
    query_starts_B1: Tensor,
    context_lens_B: Tensor,
    num_tokens: int,
    tokens_per_block: int,
) -> Attend:
    """The attention of one step."""
    if kind == "native":
        return NativeAttention(block_tables_BW, query_starts_B1, context_lens_B)
    return GatherAttention(block_tables_BW, query_starts_B1, context_lens_B, num_tokens, tokens_per_block)


def _attend_capped(
    q_BHTD: Tensor, k_BGCD: Tensor, v_BGCD: Tensor, bias_B1TC: Tensor, scale: float, softcap: float
) -> Tensor:
    """Attention with capped scores (Gemma 2), which no fused kernel of torch offers; softmax in float32."""
    repeats = q_BHTD.shape[1] // k_BGCD.shape[1]
    k_BHCD, v_BHCD = (x.repeat_interleave(repeats, 1) for x in (k_BGCD, v_BGCD))
    scores_BHTC = (q_BHTD @ k_BHCD.transpose(2, 3)).float() * scale
    scores_BHTC = softcap * torch.tanh(scores_BHTC / softcap) + bias_B1TC
    return scores_BHTC.softmax(-1).to(q_BHTD.dtype) @ v_BHCD
