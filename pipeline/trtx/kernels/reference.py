"""What every operator computes, in plain torch: the reference of the tests, and what runs where no library is loaded.

Legend: M tokens, N output rows, K input columns, Z = K / group; B sequences, W blocks per table, S tokens per block,
P blocks in a pool, H query heads, G key-value heads, D channels per head, T tokens of one sequence, C its keys; X
experts, k of a token, R = M·k rows sorted by expert.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

INT4_OFFSET = 8


def linear_bf16(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (F.linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)


def linear_fp8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (F.linear(x, weight.to(x.dtype)).float() * scale).to(x.dtype)


def linear_e4m3(x: Tensor, weight: Tensor, factor: Tensor | None) -> Tensor:
    y = F.linear(x.float(), weight.float())
    return (y if factor is None else y * factor).to(torch.bfloat16)


def rotate_and_store(
    qkv: Tensor,
    scale: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> Tensor:
    """Queries [M, H, D] of ops.rotate_and_attend, after keys and values were put into the pools."""
    size, kv_heads, head_dim = k_pool.shape[1:]
    y = qkv if scale is None else (qkv.float() * scale).to(qkv.dtype)
    y_MXD = y.view(y.shape[0], -1, head_dim)
    heads = y_MXD.shape[1] - 2 * kv_heads
    turned, v_MGD = y_MXD[:, : heads + kv_heads], y_MXD[:, heads + kv_heads :]
    pairs = cos.shape[-1]
    cos, sin = cos.view(-1, 1, pairs), sin.view(-1, 1, pairs)
    a, b = turned[..., :pairs].float(), turned[..., pairs : 2 * pairs].float()
    halves = [(a * cos - b * sin).to(y.dtype), (b * cos + a * sin).to(y.dtype), turned[..., 2 * pairs :]]
    qk_MXD = torch.cat(halves, -1)
    k_MGD = qk_MXD[:, heads:]
    for pool, numbers, divisor in ((k_pool, k_MGD, k_scale), (v_pool, v_MGD, v_scale)):
        pool.index_put_((slots // size, slots % size), to_pool(numbers, divisor, pool.dtype))
    return qk_MXD[:, :heads].contiguous()


def to_pool(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Keys or values as a pool of this type keeps them: as they are, or divided by `scale`, as int8 or e4m3's bits."""
    if scale is None or dtype not in (torch.int8, torch.uint8):
        return x
    if dtype == torch.int8:
        return (x.float() / scale).round().clamp(-128, 127).to(torch.int8)
    return to_e4m3(x, scale).view(torch.uint8)


def to_e4m3(x: Tensor, scale: Tensor | None) -> Tensor:
    """As it is without a scale; e4m3 numbers, saturated, with one."""
    return x if scale is None else (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def rotate_and_attend(
    qkv: Tensor,
    qkv_scale: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int,
    softcap: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    y_scale: Tensor | None,
) -> Tensor:
    q = rotate_and_store(qkv, qkv_scale, cos, sin, slots, k_pool, v_pool, k_scale, v_scale)
    batch = (block_tables, query_starts, context_lens)
    return to_e4m3(paged_attention(q, k_pool, v_pool, *batch, scale, window, softcap, k_scale, v_scale), y_scale)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, plus_one: bool, y_scale: Tensor | None) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    y = (normed * (1.0 + weight.float())).to(x.dtype) if plus_one else weight * normed.to(x.dtype)
    return to_e4m3(y, y_scale)


def add_rms_norm(
    x: Tensor,
    addend: Tensor,
    addend_scale: Tensor | None,
    weight: Tensor,
    epsilon: float,
    plus_one: bool,
    y_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    more = addend if addend_scale is None else (addend.float() * addend_scale).to(x.dtype)
    summed = x + more
    return summed, rms_norm(summed, weight, epsilon, plus_one, y_scale)


def gated_linear(
    x: Tensor, weight: Tensor, factor: Tensor | None, scale: Tensor | None, y_scale: Tensor | None
) -> Tensor:
    y = F.linear(x.float(), weight.float())
    y = y if factor is None else y * factor
    return gate((y if scale is None else y * scale).to(torch.bfloat16), y_scale)


def gate(x: Tensor, y_scale: Tensor | None) -> Tensor:
    gates, ups = x.chunk(2, -1)
    return to_e4m3(F.silu(gates.float()).mul(ups.float()).to(x.dtype), y_scale)


def argmax(rows: Tensor) -> Tensor:
    best, place = rows.max(-1)
    return torch.where(best.isfinite(), place, -1)


def linear_int4(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, group: int) -> Tensor:
    packed_NZh = weight.view(*scale.shape, group // 2)
    numbers_NZg = torch.cat([packed_NZh & 15, packed_NZh >> 4], -1).float() - INT4_OFFSET
    weight_NZg = numbers_NZg * scale.unsqueeze(-1)
    if offset is not None:
        weight_NZg = weight_NZg + offset.unsqueeze(-1)
    return F.linear(x, weight_NZg.flatten(1).to(x.dtype))


def linear_w8a8(
    x: Tensor, weight: Tensor, scale: Tensor, input_scale: Tensor | None, pre_quant_scale: Tensor | None
) -> Tensor:
    smoothed = x.float() if pre_quant_scale is None else x.float() * pre_quant_scale
    if input_scale is None:
        largest = smoothed.abs().amax(-1, keepdim=True)
        input_scale = torch.where(largest > 0, largest / 127, 1.0)
    x_MK = (smoothed / input_scale).round().clamp(-128, 127).to(torch.int8).flatten(0, -2)
    y_MN = torch._int_mm(x_MK, weight.t()).float()
    y: Tensor = y_MN.view(*x.shape[:-1], -1) * (input_scale * scale)
    return y.to(x.dtype)


def route_experts(logits: Tensor, per_token: int, normalize: bool) -> tuple[Tensor, ...]:
    # A stable sort, where topk leaves open which of equals it takes.
    sorted_MX, order_MX = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares_Mk, experts_R = sorted_MX[:, :per_token], order_MX[:, :per_token].flatten()
    if normalize:
        shares_Mk = shares_Mk / shares_Mk.sum(-1, keepdim=True)
    slots_R = experts_R.argsort(stable=True)
    counts_X = torch.bincount(experts_R, minlength=logits.shape[1])
    starts_X1 = F.pad(counts_X.cumsum(0), (1, 0)).to(torch.int32)
    return shares_Mk.contiguous(), slots_R, slots_R.argsort(), experts_R[slots_R], starts_X1


def grouped_linear(x: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    return _for_each_expert(lambda expert, rows: F.linear(rows, weight[expert]), x, weight, starts)


def grouped_linear_int8(x: Tensor, weight: Tensor, scale: Tensor, starts: Tensor) -> Tensor:
    return _for_each_expert(lambda expert, rows: linear_int8(rows, weight[expert], scale[expert]), x, weight, starts)


def grouped_linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, starts: Tensor) -> Tensor:
    return _for_each_expert(lambda expert, rows: linear_fp8(rows, weight[expert], scale[expert]), x, weight, starts)


def grouped_linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, starts: Tensor, group: int
) -> Tensor:
    def multiply(expert: int, rows: Tensor) -> Tensor:
        return linear_int4(rows, weight[expert], scale[expert], None if offset is None else offset[expert], group)

    return _for_each_expert(multiply, x, weight, starts)


def _for_each_expert(
    multiply: Callable[[int, Tensor], Tensor], x_RK: Tensor, weight: Tensor, starts_X1: Tensor
) -> Tensor:
    y_RN = x_RK.new_empty(x_RK.shape[0], weight.shape[1])
    for expert, (first, last) in enumerate(itertools.pairwise(starts_X1.tolist())):
        if first < last:
            y_RN[first:last] = multiply(expert, x_RK[first:last])
    return y_RN


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    window: int,
    softcap: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> Tensor:
    y = torch.empty_like(q)
    starts = query_starts.tolist()
    for sequence, length in enumerate(context_lens.tolist()):
        first, last = starts[sequence], starts[sequence + 1]
        blocks = block_tables[sequence].long()
        k_CGD = _read(k_pool, blocks, length, k_scale)
        v_CGD = _read(v_pool, blocks, length, v_scale)
        positions_T1 = torch.arange(length - (last - first), length)[:, None]
        keys_C = torch.arange(length)
        hidden_TC = keys_C > positions_T1
        if window:
            hidden_TC |= keys_C <= positions_T1 - window
        y[first:last] = _attend(q[first:last].float(), k_CGD, v_CGD, hidden_TC, scale, softcap).to(q.dtype)
    return y


def _attend(q_THD: Tensor, k_CGD: Tensor, v_CGD: Tensor, hidden_TC: Tensor, scale: float, softcap: float) -> Tensor:
    repeats = q_THD.shape[1] // k_CGD.shape[1]
    k_CHD, v_CHD = k_CGD.repeat_interleave(repeats, 1), v_CGD.repeat_interleave(repeats, 1)
    scores_HTC = torch.einsum("thd,chd->htc", q_THD, k_CHD) * scale
    if softcap:
        scores_HTC = softcap * torch.tanh(scores_HTC / softcap)
    # A token before its sequence's start is padding: it sees nothing.
    weights_HTC = scores_HTC.masked_fill(hidden_TC, float("-inf")).softmax(-1).nan_to_num(0.0)
    # A key that nobody sees may hold anything, and 0 · NaN is NaN.
    unseen_C11 = hidden_TC.all(0)[:, None, None]
    return torch.einsum("htc,chd->thd", weights_HTC, v_CHD.masked_fill(unseen_C11, 0.0))


def _read(pool: Tensor, blocks: Tensor, length: int, scale: Tensor | None) -> Tensor:
    used = blocks[: -(-length // pool.shape[1])].clamp(0, pool.shape[0] - 1)
    x = pool[used].flatten(0, 1)[:length]
    x = x.view(torch.float8_e4m3fn).float() if x.dtype == torch.uint8 else x.float()
    return x if scale is None else x * scale
