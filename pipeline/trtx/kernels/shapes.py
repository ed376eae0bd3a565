"""What tracing takes for the operators: outputs of their shapes and types, but no numbers. Legend: see reference.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def find_shape(name: str) -> Callable[..., Any]:
    """What tracing takes for an operator: outputs of its shapes."""
    special: dict[str, Callable[..., Any]] = {
        "paged_attention": _like_first,
        "route_experts": _routing,
        "linear_e4m3": _rows_in_bf16,
        "all_reduce": _like_first,
        "all_gather": lambda x, ranks: x.new_empty((*x.shape[:-1], x.shape[-1] * ranks)),
        "rotate_and_attend": _attended,
        "rms_norm": lambda x, _weight, _epsilon, _plus_one, y_scale: _narrow_like(x, x.shape[-1], y_scale),
        "add_rms_norm": lambda x, _addend, _addend_scale, _weight, _epsilon, _plus_one, y_scale: (
            torch.empty_like(x),
            _narrow_like(x, x.shape[-1], y_scale),
        ),
        "gated_linear": lambda x, weight, _factor, _scale, y_scale: _narrow_like(x, weight.shape[0] // 2, y_scale),
        "gate": lambda x, y_scale: _narrow_like(x, x.shape[-1] // 2, y_scale),
        "argmax": lambda rows: rows.new_empty(rows.shape[:1], dtype=torch.int64),
    }
    if name.startswith("grouped_linear"):
        return _rows_of_matrices
    return special.get(name, _rows_of_weight)


def _like_first(x: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rows_of_weight(x: Tensor, weight: Tensor, *_rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _rows_in_bf16(x: Tensor, weight: Tensor, *_rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.bfloat16)


def _narrow_like(x: Tensor, columns: int, y_scale: Tensor | None) -> Tensor:
    dtype = torch.bfloat16 if y_scale is None else torch.float8_e4m3fn
    return x.new_empty((*x.shape[:-1], columns), dtype=dtype)


def _attended(qkv: Tensor, *rest: Any) -> Tensor:
    (kv_heads, head_dim), y_scale = rest[4].shape[2:], rest[-1]
    shape = (qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads, head_dim)
    return qkv.new_empty(shape, dtype=torch.bfloat16 if y_scale is None else torch.float8_e4m3fn)


def _rows_of_matrices(x: Tensor, weight: Tensor, *_rest: object) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


def _routing(logits: Tensor, per_token: int, normalize: bool) -> tuple[Tensor, ...]:
    tokens, experts = logits.shape
    rows = tokens * per_token
    return (
        logits.new_empty((tokens, per_token), dtype=torch.float32),
        *(logits.new_empty((rows,), dtype=torch.int64) for _ in range(3)),
        logits.new_empty((experts + 1,), dtype=torch.int32),
    )
