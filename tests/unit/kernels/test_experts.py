from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.kernels.test_linears import TOLERANCE, assert_is_product, make_fp8, make_int4, make_int8
from trtx.kernels import ops, reference

# Experts' matrices, [X, …] each: operator, and how the tensors of one expert are made.
MAKERS: dict[str, tuple[str, Any]] = {
    "plain": ("grouped_linear", None),
    "int8": ("grouped_linear_int8", make_int8),
    "fp8": ("grouped_linear_fp8", make_fp8),
    "int4 in groups of 128": ("grouped_linear_int4", make_int4(128, False)),
    "int4 with zero points": ("grouped_linear_int4", make_int4(64, True)),
    "int4 in groups of 10": ("grouped_linear_int4", make_int4(10, True)),
}


def make_experts(
    kind: str, count: int, n: int, k: int, dtype: torch.dtype, seed: int
) -> tuple[Tensor | int | None, ...]:
    """The tensors of so many experts; the last of int4 is the group size."""
    random = torch.Generator().manual_seed(seed)
    make = MAKERS[kind][1]
    if make is None:
        return (torch.randn(count, n, k, generator=random).to(dtype),)
    each = [make(n, k, random) for _ in range(count)]
    return tuple(torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0] for parts in zip(*each, strict=True))


def call(operators: Any, kind: str, x_RK: Tensor, tensors: tuple[Any, ...], starts: Tensor) -> Tensor:
    rest = (tensors[0], *tensors[1:3], starts, tensors[3]) if "int4" in kind else (*tensors, starts)
    found: Tensor = getattr(operators, MAKERS[kind][0])(x_RK, *rest)
    return found


def columns_of(kind: str, tensors: tuple[Any, ...]) -> int:
    return int(tensors[0].shape[2]) * (2 if "int4" in kind else 1)


def cut(counts: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.one_of(st.integers(0, 12), st.just(70)), min_size=1, max_size=5),
    n=st.integers(1, 70),
    k=st.sampled_from([1, 31, 64, 130, 512, 1280]),
    seed=st.integers(0, 1 << 30),
)
def test_every_expert_multiplies_its_own_rows(
    kernels: Any, kind: str, dtype: torch.dtype, counts: list[int], n: int, k: int, seed: int
) -> None:
    tensors = make_experts(kind, len(counts), n, k, dtype, seed)
    columns, starts = columns_of(kind, tensors), cut(counts)
    x_RK = torch.randn(sum(counts), columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found_RN = call(kernels, kind, x_RK, tensors, starts)
    assert found_RN.shape == (sum(counts), n)
    for expert, (first, last) in enumerate(itertools.pairwise(starts.tolist())):
        every = torch.arange(len(counts) + 1, dtype=torch.int32).sub(expert).clamp(0, 1) * columns
        exact = [part.float() if kind == "plain" and isinstance(part, Tensor) else part for part in tensors]
        weight_KN = call(reference, kind, torch.eye(columns), tuple(exact), every)
        assert_is_product(found_RN[first:last], x_RK[first:last], weight_KN)


@pytest.mark.parametrize("kind", MAKERS)
def test_results_do_not_depend_on_the_number_of_threads(kernels: Any, kind: str) -> None:
    tensors, starts = make_experts(kind, 4, 150, 256, torch.bfloat16, 1), cut([2, 0, 9, 1])
    x = torch.randn(12, columns_of(kind, tensors), generator=torch.Generator().manual_seed(1)).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(call(kernels, kind, x, tensors, starts))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(0, 40), experts=st.integers(1, 70), data=st.data(), normalize=st.booleans())
def test_tokens_go_to_the_experts_with_the_largest_shares(
    loaded: Any, tokens: int, experts: int, data: st.DataObject, normalize: bool
) -> None:
    per_token = data.draw(st.integers(1, min(experts, 9)))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    # In bfloat16 many are equal.
    logits = torch.randn(tokens, experts, generator=random).bfloat16()
    found, expected = (of.route_experts(logits, per_token, normalize) for of in (loaded, reference))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_routing_leads_every_row_there_and_back() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    routing = ops.route_experts(logits, 2, normalize=True)
    assert routing.experts_R.tolist() == [0, 1, 2, 2]
    assert (routing.slots_R // 2).tolist() == [1, 0, 0, 1]
    assert routing.starts_X1.tolist() == [0, 1, 2, 4]
    assert torch.equal(routing.slots_R[routing.places_R], torch.arange(4))
    torch.testing.assert_close(routing.shares_Mk.sum(1), torch.ones(2))
    shares = ops.route_experts(logits, 2, normalize=False).shares_Mk
    torch.testing.assert_close(shares, logits.softmax(-1).topk(2).values)


def test_halves_are_multiplied_too(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, starts = torch.randn(5, 64).half(), cut([2, 0, 3])
    (weight,) = make_experts("plain", 3, 8, 64, torch.float16, 0)
    expected = reference.grouped_linear(x, weight, starts)
    torch.testing.assert_close(loaded.grouped_linear(x, weight, starts), expected, rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(ops, "_current", ops.DEFAULT_NAMESPACE)
    weight, scale = make_experts("int8", 3, 8, 64, torch.float32, 0)
    found = ops.grouped_linear_int8(x, weight, scale, starts)
    assert found.dtype == torch.float16
    assert torch.equal(found, reference.grouped_linear_int8(x.float(), weight, scale, starts).half())


def test_rows_and_matrices_that_do_not_fit_are_refused(kernels: Any) -> None:
    x, (weight, scale) = torch.zeros(4, 64), make_experts("int8", 2, 8, 64, torch.float32, 0)
    good = (x, weight, scale, cut([1, 3]))
    kernels.grouped_linear_int8(*good)
    for place, wrong, why in (
        (0, torch.zeros(4, 63), "weight is"),
        (0, torch.zeros(64, 4).t(), "contiguous"),
        (0, x.half(), "x is Half"),
        (1, weight[0], "a matrix for every expert"),
        (2, scale[:1], "scale is"),
        (3, cut([1, 2]), "do not cover the rows"),
        (3, cut([5, -1]), "not in order"),
        (3, cut([4]), "starts is"),
        (3, cut([1, 3]).long(), "starts is"),
    ):
        with pytest.raises(RuntimeError, match=f"kernels: .*{why}"):
            kernels.grouped_linear_int8(*good[:place], wrong, *good[place + 1 :])
    with pytest.raises(RuntimeError, match="kernels: 4 of 3 experts"):
        kernels.route_experts(torch.zeros(1, 3), 4, True)
    with pytest.raises(RuntimeError, match="kernels: x is Float, weight BFloat16"):
        kernels.grouped_linear(x, torch.zeros(2, 8, 64).bfloat16(), cut([1, 3]))
