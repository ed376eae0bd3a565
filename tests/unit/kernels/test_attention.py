from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trtx.kernels import reference

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3}
POOLS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.uint8, "int8": torch.int8}


def make_pool(kind: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    if kind == "int8":
        return torch.randint(-128, 128, shape, generator=random, dtype=torch.int8)
    values = torch.randn(shape, generator=random)
    return values.to(torch.float8_e4m3fn).view(torch.uint8) if kind == "fp8" else values.to(POOLS[kind])


def poison(pool: Tensor, block_tables: Tensor, seen: list[range]) -> None:
    """NaN (in int8, the largest number) in every slot that no token sees."""
    size = pool.shape[1]
    unseen = torch.ones(pool.shape[:2], dtype=torch.bool)
    for table, keys in zip(block_tables, seen, strict=True):
        for key in keys:
            unseen[table[key // size], key % size] = False
    pool[unseen] = 0x7F if pool.dtype in (torch.uint8, torch.int8) else float("nan")


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Sequences of one or more tokens behind contexts of any length, over blocks in no order."""
    count = draw(st.integers(1, 4))
    tokens = [draw(st.one_of(st.just(1), st.integers(1, 40))) for _ in range(count)]
    before = [draw(st.one_of(st.integers(0, 70), st.integers(500, 1100))) for _ in range(count)]
    kv_heads = draw(st.integers(1, 3))
    return {
        "tokens": tokens,
        "lengths": [a + b for a, b in zip(tokens, before, strict=True)],
        "size": draw(st.sampled_from([1, 4, 16, 24])),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3, 8])),
        "head_dim": draw(st.sampled_from([1, 7, 16, 20, 64, 80, 96, 128])),
        "window": draw(st.sampled_from([0, 0, 1, 5, 64, 700])),
        "softcap": draw(st.sampled_from([0.0, 0.0, 3.0])),
        "seed": draw(st.integers(0, 1 << 30)),
    }


def make_call(batch: dict[str, Any], pool_kind: str, dtype: torch.dtype) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(batch["seed"])
    lengths, size, head_dim = batch["lengths"], batch["size"], batch["head_dim"]
    width = max(-(-length // size) for length in lengths) + 2
    num_blocks = 1 + len(lengths) * width
    tables = (torch.randperm(num_blocks - 1, generator=random) + 1).view(len(lengths), width).int()
    shape = (num_blocks, size, batch["kv_heads"], head_dim)
    pools = [make_pool(pool_kind, shape, random) for _ in range(2)]
    window = batch["window"]
    firsts = [max(0, a - b + 1 - window) if window else 0 for a, b in zip(lengths, batch["tokens"], strict=True)]
    for pool in pools:
        poison(pool, tables, [range(first, length) for first, length in zip(firsts, lengths, strict=True)])
    # Nor may entries of the table be followed that nothing is read through.
    for table, first, length in zip(tables, firsts, lengths, strict=True):
        table[: first // size] = -1
        table[-(-length // size) :] = 1 << 30
    q = torch.randn(sum(batch["tokens"]), batch["heads"], head_dim, generator=random).to(dtype)
    starts = torch.tensor([0, *batch["tokens"]]).cumsum(0).int()
    scales = (torch.tensor(0.02), torch.tensor(0.03)) if pool_kind in ("fp8", "int8") else (None, None)
    scale, softcap = head_dim**-0.5, batch["softcap"]
    return (q, *pools, tables, starts, torch.tensor(lengths).int(), scale, window, softcap, *scales)


def assert_close(found: Tensor, expected: Tensor) -> None:
    largest = expected.float().abs().max().item()
    assert (found.float() - expected.float()).abs().max().item() <= TOLERANCE[found.dtype] * (largest + 1e-3)


@pytest.mark.parametrize("pool_kind", POOLS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=batches())
def test_attention_is_that_of_its_reference_and_reads_no_slot_that_nobody_sees(
    kernels: Any, pool_kind: str, dtype: torch.dtype, batch: dict[str, Any]
) -> None:
    call = make_call(batch, pool_kind, dtype)
    found = kernels.paged_attention(*call)
    assert found.isfinite().all()
    assert_close(found, reference.paged_attention(*call))


PLAIN = {"size": 16, "kv_heads": 2, "heads": 4, "head_dim": 64, "window": 0, "softcap": 0.0, "seed": 1}
MIXED = {**PLAIN, "tokens": [1, 33, 1], "lengths": [1500, 33, 80]}


def test_results_depend_on_neither_threads_nor_the_rest_of_the_batch(kernels: Any) -> None:
    q, k_pool, v_pool, tables, starts, lengths, *rest = make_call(MIXED, "bfloat16", torch.bfloat16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(kernels.paged_attention(q, k_pool, v_pool, tables, starts, lengths, *rest))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    alone = kernels.paged_attention(
        q[:1], k_pool, v_pool, tables[:1], torch.tensor([0, 1]).int(), lengths[:1].clone(), *rest
    )
    assert torch.equal(alone, found[0][:1])


def test_padding_before_a_sequence_begins_gives_zeros(kernels: Any) -> None:
    call = list(make_call(MIXED, "bfloat16", torch.bfloat16))
    call[5] = torch.tensor([1500, 20, 80], dtype=torch.int32)  # 13 of the 33 tokens are before position 0
    found = kernels.paged_attention(*call)
    assert not found[1:14].any()
    assert_close(found, reference.paged_attention(*call))


def test_two_threads_at_once_get_their_own_results(kernels: Any) -> None:
    calls = [make_call({**MIXED, "seed": seed}, "float32", torch.float32) for seed in (1, 2)]
    expected = [kernels.paged_attention(*call) for call in calls]
    wrong: list[int] = []

    def call_often(which: int) -> None:
        for _ in range(20):
            if not torch.equal(kernels.paged_attention(*calls[which]), expected[which]):
                wrong.append(which)

    callers = [threading.Thread(target=call_often, args=(which,)) for which in (0, 1)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (3, torch.full((3, 96), 10_000, dtype=torch.int32), "no block 10000"),
        (4, torch.tensor([0, 1, 34, 36], dtype=torch.int32), "do not cover the tokens"),
        (5, torch.tensor([1500, -1, 80], dtype=torch.int32), "sequence 1 has 33 tokens, a context of -1"),
        (5, torch.tensor([1500, 33, 8000], dtype=torch.int32), "a context of 8000"),
        (5, torch.tensor([1500, 33, 80]), "context_lens is Long"),
    ],
)
def test_a_batch_that_would_read_elsewhere_is_refused(kernels: Any, position: int, value: Tensor, message: str) -> None:
    call = list(make_call(MIXED, "float32", torch.float32))
    call[position] = value
    with pytest.raises(RuntimeError, match=message):
        kernels.paged_attention(*call)
