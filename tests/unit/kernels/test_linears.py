from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trtx.kernels import reference

# Relative to |x|·|w|, which bounds a product: float32 sums in another order, int4 weights may be rounded to bfloat16.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-3}
# Relative to the output, which is rounded once.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8}

# Operator, tensors besides x. Legend: N rows, K columns.
Make = Callable[[int, int, torch.Generator], tuple[Any, ...]]


def make_bf16(n: int, k: int, random: torch.Generator) -> tuple[Any, ...]:
    return (torch.randn(n, k, generator=random).bfloat16(),)


def make_int8(n: int, k: int, random: torch.Generator) -> tuple[Any, ...]:
    weight = torch.randint(-128, 128, (n, k), generator=random, dtype=torch.int8)
    return weight, torch.rand(n, generator=random) / 100 + 0.001


def make_fp8(n: int, k: int, random: torch.Generator) -> tuple[Any, ...]:
    bits = torch.randint(0, 256, (n, k), generator=random, dtype=torch.uint8)
    bits[(bits & 0x7F) == 0x7F] = 0  # NaN
    return bits.view(torch.float8_e4m3fn), torch.rand(n, generator=random) + 0.1


def make_int4(group: int, with_offset: bool) -> Make:
    def make(n: int, k: int, random: torch.Generator) -> tuple[Any, ...]:
        k = max(1, k // group) * group
        weight = torch.randint(0, 256, (n, k // 2), generator=random, dtype=torch.uint8)
        scale = torch.rand(n, k // group, generator=random) / 10
        offset = torch.randn(n, k // group, generator=random) if with_offset else None
        return weight, scale, offset, group

    return make


MAKERS: dict[str, tuple[str, Make]] = {
    "bf16": ("linear_bf16", make_bf16),
    "int8": ("linear_int8", make_int8),
    "fp8": ("linear_fp8", make_fp8),
    "int4 in groups of 128": ("linear_int4", make_int4(128, False)),
    "int4 with zero points": ("linear_int4", make_int4(64, True)),
    "int4 in groups of 10": ("linear_int4", make_int4(10, True)),
}

SIZES = st.integers(1, 40), st.integers(1, 90), st.one_of(st.integers(1, 80), st.sampled_from([128, 512, 1280, 2176]))


def columns_of(name: str, weight: Tensor) -> int:
    return weight.shape[1] * (2 if name == "linear_int4" else 1)


def assert_is_product(found_MN: Tensor, x_MK: Tensor, weight_KN: Tensor) -> None:
    expected_MN = x_MK.float() @ weight_KN
    sizes_MN = x_MK.float().norm(dim=1)[:, None] * weight_KN.norm(dim=0)
    bound_MN = TOLERANCE[found_MN.dtype] * sizes_MN + ROUNDING[found_MN.dtype] * expected_MN.abs()
    assert ((found_MN.float() - expected_MN).abs() <= bound_MN).all()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=SIZES[0], n=SIZES[1], k=SIZES[2], seed=st.integers(0, 1 << 30))
def test_every_linear_computes_what_its_reference_does(
    kernels: Any, kind: str, dtype: torch.dtype, m: int, n: int, k: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    name, make = MAKERS[kind]
    tensors = make(n, k, random)
    columns = columns_of(name, tensors[0])
    x = torch.randn(m, columns, generator=random).to(dtype)
    weight_KN = getattr(reference, name)(torch.eye(columns), *tensors)
    assert_is_product(getattr(kernels, name)(x, *tensors), x, weight_KN)


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=SIZES[0],
    n=SIZES[1],
    k=SIZES[2],
    static=st.booleans(),
    smoothed=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_w8a8_rounds_and_sums_exactly_as_its_reference(
    kernels: Any, dtype: torch.dtype, m: int, n: int, k: int, static: bool, smoothed: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    k = max(2, k)  # the reference's torch._int_mm gives garbage for one column (2.13)
    weight, scale = make_int8(n, k, random)
    x = torch.randn(m, k, generator=random).to(dtype)
    input_scale = torch.tensor(0.02) if static else None
    smoothing = torch.rand(k, generator=random) + 0.5 if smoothed else None
    tensors = (weight, scale, input_scale, smoothing)
    assert torch.equal(kernels.linear_w8a8(x, *tensors), reference.linear_w8a8(x, *tensors))


@pytest.mark.parametrize("static", [True, False])
def test_w8a8_of_a_long_prompt_is_exact_too(kernels: Any, static: bool) -> None:
    random = torch.Generator().manual_seed(0)
    weight, scale = make_int8(70, 200, random)
    x = torch.randn(150, 200, generator=random).bfloat16()
    tensors = (weight, scale, torch.tensor(0.02) if static else None, None)
    assert torch.equal(kernels.linear_w8a8(x, *tensors), reference.linear_w8a8(x, *tensors))


def test_a_token_of_zeros_has_a_scale_of_its_own(kernels: Any) -> None:
    weight, scale = make_int8(8, 64, torch.Generator().manual_seed(0))
    assert not kernels.linear_w8a8(torch.zeros(2, 64), weight, scale, None, None).any()


@pytest.mark.parametrize("kind", MAKERS)
def test_results_do_not_depend_on_the_number_of_threads(kernels: Any, kind: str) -> None:
    name, make = MAKERS[kind]
    random = torch.Generator().manual_seed(1)
    tensors = make(200, 512, random)
    x = torch.randn(3, columns_of(name, tensors[0]), generator=random).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(getattr(kernels, name)(x, *tensors))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_two_threads_at_once_get_their_own_results(kernels: Any) -> None:
    random = torch.Generator().manual_seed(2)
    inputs = [(torch.randn(20, 130, generator=random), *make_int8(64, 130, random)) for _ in range(2)]
    expected = [kernels.linear_int8(*tensors) for tensors in inputs]
    wrong: list[int] = []

    def call(which: int) -> None:
        for _ in range(50):
            if not torch.equal(kernels.linear_int8(*inputs[which]), expected[which]):
                wrong.append(which)

    callers = [threading.Thread(target=call, args=(which,)) for which in (0, 1)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_leading_dimensions_are_kept_and_no_tokens_give_none(kernels: Any) -> None:
    weight, scale = make_int8(5, 64, torch.Generator().manual_seed(3))
    assert kernels.linear_int8(torch.zeros(2, 3, 64), weight, scale).shape == (2, 3, 5)
    assert kernels.linear_int8(torch.zeros(0, 64), weight, scale).shape == (0, 5)


def test_tensors_that_do_not_fit_are_refused(kernels: Any) -> None:
    weight, scale = make_int8(5, 64, torch.Generator().manual_seed(3))
    x = torch.zeros(1, 64)
    for tensors in (
        (torch.zeros(1, 63), weight, scale),
        (x, weight, scale[:4]),
        (x, weight.float(), scale),
        (x, weight.t().contiguous().t(), scale),
        (x.half(), weight, scale),
        (torch.zeros(64, 2).t(), weight, scale),
    ):
        with pytest.raises(RuntimeError, match="kernels: "):
            kernels.linear_int8(*tensors)
    with pytest.raises(RuntimeError, match="groups of 48"):
        kernels.linear_int4(x, torch.zeros(5, 32, dtype=torch.uint8), torch.zeros(5, 1), None, 48)


def test_a_level_that_is_not_there_is_refused(loaded: Any) -> None:
    with pytest.raises(RuntimeError, match="no level avx9000"):
        loaded.choose_level("avx9000")
