"""The operators as torch sees them: schemas, and the way to call them; their shapes for tracing are in shapes.py.

    y = ops.linear_int8(x, weight, scale)

A call goes to the operators of one namespace, `trtx_kernels` unless `use_namespace` named another: a program is traced
with the namespace of the library that is built for it. Operators run in the library when one of their namespace is
loaded (trtx.runtime.native) and in plain torch otherwise.

Legend: see reference.py. y has x's dtype, scales are float32. The library takes float32 and bfloat16; for other dtypes
the plain torch form becomes part of the program. That of a mixture of experts cannot: its loop follows numbers. So such
products are taken in float32, or by the library through torch where weights are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library, register_fake

from trtx.kernels import collectives, reference
from trtx.kernels.shapes import find_shape

DEFAULT_NAMESPACE = "trtx_kernels"

# What takes tensors; implemented in plain torch, too.
KERNELS: dict[str, str] = {
    "paged_attention": "(Tensor q, Tensor k_pool, Tensor v_pool, Tensor block_tables, Tensor query_starts,"
    " Tensor context_lens, float scale, int window, float softcap, Tensor? k_scale, Tensor? v_scale) -> Tensor",
    # It writes to the pools and does not say so: the compiler would copy them.
    "rotate_and_attend": "(Tensor qkv, Tensor? qkv_scale, Tensor cos, Tensor sin, Tensor slots, Tensor k_pool,"
    " Tensor v_pool, Tensor block_tables, Tensor query_starts, Tensor context_lens, float scale, int window,"
    " float softcap, Tensor? k_scale, Tensor? v_scale, Tensor? y_scale) -> Tensor",
    "rms_norm": "(Tensor x, Tensor weight, float epsilon, bool plus_one, Tensor? y_scale) -> Tensor",
    "add_rms_norm": "(Tensor x, Tensor addend, Tensor? addend_scale, Tensor weight, float epsilon, bool plus_one,"
    " Tensor? y_scale) -> (Tensor, Tensor)",
    "gated_linear": "(Tensor x, Tensor weight, Tensor? factor, Tensor? scale, Tensor? y_scale) -> Tensor",
    "gate": "(Tensor x, Tensor? y_scale) -> Tensor",
    "linear_bf16": "(Tensor x, Tensor weight) -> Tensor",
    "linear_int8": "(Tensor x, Tensor weight, Tensor scale) -> Tensor",
    "linear_int4": "(Tensor x, Tensor weight, Tensor scale, Tensor? offset, int group) -> Tensor",
    "linear_fp8": "(Tensor x, Tensor weight, Tensor scale) -> Tensor",
    "linear_e4m3": "(Tensor x, Tensor weight, Tensor? factor) -> Tensor",
    "argmax": "(Tensor rows) -> Tensor",
    "linear_w8a8": "(Tensor x, Tensor weight, Tensor scale, Tensor? input_scale, Tensor? pre_quant_scale) -> Tensor",
    "route_experts": "(Tensor logits, int per_token, bool normalize) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "grouped_linear": "(Tensor x, Tensor weight, Tensor starts) -> Tensor",
    "grouped_linear_int8": "(Tensor x, Tensor weight, Tensor scale, Tensor starts) -> Tensor",
    "grouped_linear_int4": "(Tensor x, Tensor weight, Tensor scale, Tensor? offset, Tensor starts, int group)"
    " -> Tensor",
    "grouped_linear_fp8": "(Tensor x, Tensor weight, Tensor scale, Tensor starts) -> Tensor",
}

# What ranks tell one another (collectives.py); no library has them.
COLLECTIVES: dict[str, str] = {
    "all_reduce": "(Tensor x) -> Tensor",
    "all_gather": "(Tensor x, int ranks) -> Tensor",
}

# What only a library can do: run programs, say and change which level of its kernels runs (processors), and say and
# change which algorithm computes which product (GPUs; records of kernels/cuda/products.h).
LIBRARY: dict[str, str] = {
    "load_program": "(str folder, str name) -> int",
    "constant_names": "(int program) -> str[]",
    "set_constants": "(int program, str[] names, Tensor[] values) -> ()",
    "run_program": "(int program, Tensor[] inputs) -> Tensor[]",
    "unload_program": "(int program) -> ()",
    "current_level": "() -> str",
    "choose_level": "(str name) -> ()",
    "supported_levels": "() -> str[]",
    "product_candidates": "(Tensor x, Tensor weight, bool is_gated, int count) -> str[]",
    "use_products": "(str[] records) -> ()",
}

_declared: dict[str, Library] = {}
_current = DEFAULT_NAMESPACE


def declare(namespace: str) -> Any:
    """The operators of a namespace, `torch.ops.<namespace>`, declared when this is the first call for it."""
    if namespace not in _declared:
        library = Library(namespace, "DEF")  # type: ignore[no-untyped-call]
        for name, schema in {**KERNELS, **COLLECTIVES, **LIBRARY}.items():
            library.define(name + schema)  # type: ignore[no-untyped-call]
        for name in (*KERNELS, *COLLECTIVES):
            plain = getattr(collectives if name in COLLECTIVES else reference, name)
            library.impl(name, plain, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
            register_fake(f"{namespace}::{name}", find_shape(name), lib=library)
        _declared[namespace] = library
    return getattr(torch.ops, namespace)


def use_namespace(namespace: str) -> None:
    """Let the functions below call the operators of this namespace, in the whole process."""
    global _current
    declare(namespace)
    _current = namespace


def paged_attention(
    q_MHD: Tensor,
    k_pool_PSGD: Tensor,
    v_pool_PSGD: Tensor,
    block_tables_BW: Tensor,
    query_starts_B1: Tensor,
    context_lens_B: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Attention [M, H, D] of a step's tokens over the pools, their own keys and values included.

    Sequence b owns the tokens query_starts[b] … query_starts[b+1]-1, the last of them at position context_lens[b]-1.
    A token sees itself and all before it, of these only the last `window` (itself counted) unless that is 0. Scores are
    q·k·scale, and softcap·tanh(score / softcap) unless `softcap` is 0. Pools are float32, bfloat16, int8 or uint8 (the
    bits of e4m3); `k_scale` and `v_scale` multiply them. Tables, starts and lengths are int32. Slots that no token sees
    are not read; a token before position 0 is padding, sees nothing and gives zeros.
    """
    tensors = (q_MHD, k_pool_PSGD, v_pool_PSGD, block_tables_BW, query_starts_B1, context_lens_B)
    y: Tensor = declare(_current).paged_attention(*tensors, scale, window, softcap, k_scale, v_scale)
    return y


def rotate_and_attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots_M: Tensor,
    k_pool_PSGD: Tensor,
    v_pool_PSGD: Tensor,
    block_tables_BW: Tensor,
    query_starts_B1: Tensor,
    context_lens_B: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    qkv_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """paged_attention of queries that are rotated first, after keys, rotated, and values were put into the pools.

    `qkv` is bfloat16 [M, (H + 2 G) · D], multiplied by qkv_scale [(H + 2 G) · D] first; cos and sin are float32,
    [M, pairs] in order, and slots_M int64: block · S + offset. `k_scale` and `v_scale` divide what 8-bit pools take.
    With `y_scale` the result is divided by it and e4m3. For GPUs.
    """
    y: Tensor = declare(_current).rotate_and_attend(
        qkv,
        qkv_scale,
        cos.contiguous(),
        sin.contiguous(),
        slots_M,
        k_pool_PSGD,
        v_pool_PSGD,
        block_tables_BW,
        query_starts_B1,
        context_lens_B,
        scale,
        window,
        softcap,
        k_scale,
        v_scale,
        y_scale,
    )
    return y


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, plus_one: bool, y_scale: Tensor | None = None) -> Tensor:
    """x / rms(x) · weight (or 1 + weight) of bfloat16 [..., E]; with `y_scale` divided by it, as e4m3. For GPUs."""
    y: Tensor = declare(_current).rms_norm(x, weight, epsilon, plus_one, y_scale)
    return y


def add_rms_norm(
    x: Tensor,
    addend: Tensor,
    weight: Tensor,
    epsilon: float,
    *,
    plus_one: bool,
    addend_scale: Tensor | None = None,
    y_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x + addend · addend_scale[E], and the rms_norm of that. For GPUs."""
    summed, y = declare(_current).add_rms_norm(x, addend, addend_scale, weight, epsilon, plus_one, y_scale)
    return summed, y


def gated_linear(
    x: Tensor,
    weight: Tensor,
    *,
    factor: Tensor | None = None,
    scale: Tensor | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """silu(gates) · ups of (x · weightᵀ) · factor · scale[N], gates the first half of the columns, ups the second.

    x and weight [N, K] are both bfloat16 or both e4m3; the result [M, N / 2] is bfloat16, or with `y_scale` divided by
    it and e4m3. For GPUs.
    """
    y: Tensor = declare(_current).gated_linear(x.contiguous(), weight, factor, scale, y_scale)
    return y


def gate(x: Tensor, y_scale: Tensor | None = None) -> Tensor:
    """silu(gates) · ups of bfloat16 [M, N], halves as in gated_linear. For GPUs."""
    y: Tensor = declare(_current).gate(x.contiguous(), y_scale)
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, all of one dtype: the library's product in bfloat16, torch's in others."""
    if x.dtype != torch.bfloat16:
        return F.linear(x, weight, bias)
    y = linear_bf16(x, weight)
    return y if bias is None else y + bias


def linear_bf16(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ, weight bfloat16 [N, K]."""
    return _call("linear_bf16", x, weight)


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x · (weight · scale)ᵀ, weight int8 [N, K], scale [N]."""
    return _call("linear_int8", x, weight, scale)


def linear_int4(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """x · (int4 · scale + offset)ᵀ, weight uint8 [N, K/2] in the layout of quant/linear.py, scale and offset [N, Z].

    Weights may be rounded to x's dtype before they are multiplied.
    """
    return _call("linear_int4", x, weight, scale, offset, 2 * weight.shape[1] // scale.shape[1])


def linear_fp8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x · (weight · scale)ᵀ, weight float8_e4m3fn [N, K], scale [N]. x is not rounded."""
    return _call("linear_fp8", x, weight, scale)


def linear_e4m3(x: Tensor, weight: Tensor, factor: Tensor | None = None) -> Tensor:
    """(x · weightᵀ) · factor in bfloat16, x [M, K] and weight [N, K] float8_e4m3fn, factor a float32 scalar.

    For GPUs, whose matrix instructions multiply e4m3 numbers.
    """
    y: Tensor = declare(_current).linear_e4m3(x.contiguous(), weight, factor)
    return y


def argmax(rows_NV: Tensor) -> Tensor:
    """Where the largest number of every row is, int64 [N]; -1 where it is not finite.

    Rows are float32 or bfloat16.
    """
    y: Tensor = declare(_current).argmax(rows_NV.contiguous())
    return y


def linear_w8a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    input_scale: Tensor | None = None,
    pre_quant_scale: Tensor | None = None,
) -> Tensor:
    """(int8(x · pre_quant_scale[K] / input_scale) · weightᵀ) · input_scale · scale[N], summed in int32.

    Without input_scale every token has its own, its largest magnitude / 127. Weight int8 [N, K].
    """
    return _call("linear_w8a8", x, weight, scale, input_scale, pre_quant_scale)


def all_reduce(x: Tensor) -> Tensor:
    """The sum of x over the tensor-parallel ranks, of any shape and float type, the same bits on every rank."""
    y: Tensor = declare(_current).all_reduce(x)
    return y


def all_gather(x: Tensor, ranks: int) -> Tensor:
    """The x [..., N] of so many tensor-parallel ranks side by side, [..., ranks·N]."""
    y: Tensor = declare(_current).all_gather(x, ranks)
    return y


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a step go. R = M·k rows are sorted by expert: first those of the first expert, and so on.

    `shares_Mk` is the part, float32, that each expert of a token has in its output. Row r is slot `slots_R[r]` of the
    M·k pairs of token and expert (token slots // k) and goes to `experts_R[r]`; slot s is row `places_R[s]`; all int64.
    Expert i has the rows `starts_X1[i]` … `starts_X1[i + 1] - 1`, int32.
    """

    shares_Mk: Tensor
    slots_R: Tensor
    places_R: Tensor
    experts_R: Tensor
    starts_X1: Tensor


def route_experts(logits: Tensor, per_token: int, normalize: bool) -> Routing:
    """The `per_token` experts of each token with the largest softmax(logits), logits [M, X] of any float type.

    Of equal ones the first are taken. `normalize` has the shares of a token sum up to 1.
    """
    return Routing(*declare(_current).route_experts(logits, per_token, normalize))


def grouped_linear(x: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """x · weightᵀ [R, N], x [R, K] sorted by expert and weight [X, N, K] of one dtype. Idle experts are not read."""
    y: Tensor = declare(_current).grouped_linear(x.contiguous(), weight, starts)
    return y


def grouped_linear_int8(x: Tensor, weight: Tensor, scale: Tensor, starts: Tensor) -> Tensor:
    """linear_int8 of each expert's rows with its own of weight [X, N, K] and scale [X, N]."""
    return _call_grouped("grouped_linear_int8", x, weight, scale, starts)


def grouped_linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, starts: Tensor) -> Tensor:
    """linear_fp8 of each expert's rows with its own of weight [X, N, K] and scale [X, N]."""
    return _call_grouped("grouped_linear_fp8", x, weight, scale, starts)


def grouped_linear_int4(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, starts: Tensor) -> Tensor:
    """linear_int4 of each expert's rows with its own of weight [X, N, K/2], scale and offset [X, N, Z]."""
    group = 2 * weight.shape[2] // scale.shape[2]
    return _call_grouped("grouped_linear_int4", x, weight, scale, offset, starts, group)


def _call_grouped(name: str, x: Tensor, *rest: object) -> Tensor:
    taken = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
    y: Tensor = getattr(declare(_current), name)(taken.contiguous(), *rest)
    return y.to(x.dtype)


def _call(name: str, x: Tensor, *rest: object) -> Tensor:
    if x.dtype not in (torch.float32, torch.bfloat16):
        plain: Tensor = getattr(reference, name)(x, *rest)
        return plain
    y: Tensor = getattr(declare(_current), name)(x.contiguous(), *rest)
    return y
