"""The GPU's kernels beside their meaning in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from trtx.backends.inductor.build import compiler_version, find_compiler, nvcc_version
from trtx.kernels import build_cuda, ops, reference
from trtx.kernels.build import LibraryJob
from trtx.runtime.native import load_kernels

ARCH = "sm_90"


@pytest.fixture(scope="module", autouse=True)
def operators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    work = tmp_path_factory.mktemp("kernels")
    compiler = find_compiler()
    namespace = build_cuda.make_namespace(ARCH, f"g++ {compiler_version(compiler)} nvcc {nvcc_version()}")
    path = work / "kernels.so"
    build_cuda.build_library(
        LibraryJob(
            march=ARCH,
            namespace=namespace,
            compiler=str(compiler),
            work=str(work),
            library=str(path),
            shelf=str(work / "shelf"),
            processes=6,
        )
    )
    loaded = load_kernels(path, namespace)
    ops.use_namespace(namespace)
    torch.manual_seed(5)
    yield loaded
    ops.use_namespace(ops.DEFAULT_NAMESPACE)


def distance(found: Tensor, expected: Tensor) -> float:
    expected = expected.to(found.device).double()
    return float((found.double() - expected).norm() / expected.norm())


def random_bf16(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 33, 100, 200])
def test_products_are_those_of_float64(tokens: int) -> None:
    x = torch.randn(tokens, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(336, 1024, device="cuda", dtype=torch.bfloat16) * 0.02
    assert distance(ops.linear_bf16(x, weight), x.double() @ weight.double().T) < 4e-3
    narrow, thin = x.to(torch.float8_e4m3fn), (weight * 20).to(torch.float8_e4m3fn)
    factor = torch.tensor(0.37, device="cuda")
    assert distance(ops.linear_e4m3(narrow, thin, factor), narrow.double() @ thin.double().T * 0.37) < 4e-3


@pytest.mark.parametrize("way", ["few", "streamed 128 1", "streamed 128 3", "streamed 256 2", "streamed 256 8"])
@pytest.mark.parametrize("tokens", [1, 8])
def test_every_way_to_compute_a_product_gives_the_same(tokens: int, way: str, operators: Any) -> None:
    x, weight = random_bf16(tokens, 1184), random_bf16(1360, 1184) * 0.02
    expected = x.double() @ weight.double().T
    operators.use_products([f"bf16 8 1360 1184 {way}"])
    assert distance(ops.linear_bf16(x, weight), expected) < 4e-3


@pytest.mark.parametrize(
    "record", ["bf16 8 1360", "bf16 8 1360 1184 streamed 64 1", "fp4 8 1360 1184 few", "bf16 8 8 8 12"]
)
def test_what_is_no_record_is_refused(record: str, operators: Any) -> None:
    with pytest.raises(RuntimeError, match="no record"):
        operators.use_products([record])


@pytest.mark.parametrize("way", ["streamed 128 1", "streamed 128 5", "streamed 256 1", "streamed 256 3"])
@pytest.mark.parametrize("tokens", [1, 16, 33, 90, 128])
@pytest.mark.parametrize("is_narrow", [False, True])
def test_gates_are_applied_where_the_product_ends(tokens: int, way: str, is_narrow: bool, operators: Any) -> None:
    x, weight = random_bf16(tokens, 640), random_bf16(1792, 640) * 0.05
    scale, factor, y_scale = None, None, None
    kind, bound = "bf16", 6e-3
    if is_narrow:
        kind, bound = "e4m3", 0.04
        x, weight = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        scale, factor = torch.rand(1792, device="cuda") + 0.5, torch.tensor(0.9, device="cuda")
        y_scale = torch.tensor(0.05, device="cuda")
    rounded = 8 if tokens <= 8 else (tokens + 15) // 16 * 16
    operators.use_products([f"{kind}-gated {rounded} 1792 640 {way}"])
    found = ops.gated_linear(x, weight, factor=factor, scale=scale, y_scale=y_scale)
    expected = reference.gated_linear(x, weight, factor, scale, None).float()
    wide = found.float() if y_scale is None else found.float() * y_scale
    assert distance(wide, expected) < bound


@pytest.mark.parametrize("is_narrow", [False, True])
def test_many_tokens_have_their_gates_applied_apart(is_narrow: bool) -> None:
    x, weight = random_bf16(300, 640), random_bf16(1792, 640) * 0.05
    if not is_narrow:
        expected = reference.gated_linear(x, weight, None, None, None)
        assert distance(ops.gated_linear(x, weight), expected) < 6e-3
        assert distance(ops.gate(ops.linear_bf16(x, weight)), expected) < 6e-3
        return
    x, weight = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
    scale, y_scale = torch.rand(1792, device="cuda") + 0.5, torch.tensor(0.05, device="cuda")
    found = ops.gated_linear(x, weight, scale=scale, y_scale=y_scale).float() * y_scale
    assert distance(found, reference.gated_linear(x, weight, None, scale, None)) < 0.04


@pytest.mark.parametrize("channels", [64, 1000, 4096, 8192, 16384])
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("is_narrow", [False, True])
def test_norms_take_the_sum_before_and_the_rounding_after(channels: int, plus_one: bool, is_narrow: bool) -> None:
    x, addend, weight = random_bf16(5, channels), random_bf16(5, channels), random_bf16(channels)
    scale = torch.rand(channels, device="cuda") if is_narrow else None
    y_scale = torch.tensor(0.02, device="cuda") if is_narrow else None
    found = ops.add_rms_norm(x, addend, weight, 1e-5, plus_one=plus_one, addend_scale=scale, y_scale=y_scale)
    expected = reference.add_rms_norm(x, addend, scale, weight, 1e-5, plus_one, y_scale)
    assert torch.equal(found[0], expected[0])
    assert found[1].dtype == expected[1].dtype
    assert distance(found[1].float(), expected[1].float()) < (0.02 if is_narrow else 4e-3)
    alone = ops.rms_norm(x, weight, 1e-5, plus_one=plus_one)
    assert distance(alone, reference.rms_norm(x, weight, 1e-5, plus_one, None)) < 4e-3


@pytest.mark.parametrize("pool", [torch.bfloat16, torch.uint8, torch.int8])
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "pairs"), [(128, 32, 8, 64), (64, 6, 2, 16), (256, 4, 1, 128), (128, 20, 1, 32)]
)
@pytest.mark.parametrize(
    "lengths", [[1] * 6, [1, 30, 1, 5, 1, 1], [1], [1] * 150], ids=["decode", "prompts", "alone", "many"]
)
@pytest.mark.parametrize("is_narrow", [False, True])
def test_attention_takes_projections_and_puts_keys_and_values_where_their_slots_say(
    pool: torch.dtype, head_dim: int, heads: int, kv_heads: int, pairs: int, lengths: list[int], is_narrow: bool
) -> None:
    size, width, contexts = 16, 40, ([600, 37, 17, 5, 1, 64] * 25)[: len(lengths)]
    window = 0 if is_narrow else 50
    blocks = len(contexts) * width + 1
    tables = (torch.randperm(blocks - 1) + 1).view(len(contexts), width).int()
    positions = [range(end - count, end) for end, count in zip(contexts, lengths, strict=True)]
    rows = zip(tables.tolist(), positions, strict=True)
    slots = torch.tensor([row[at // size] * size + at % size for row, ats in rows for at in ats])
    tokens, columns = sum(lengths), (heads + 2 * kv_heads) * head_dim
    qkv, qkv_scale = random_bf16(tokens, columns), torch.rand(columns, device="cuda") if is_narrow else None
    angles = torch.rand(tokens, pairs, device="cuda") * 6
    scales = [torch.tensor(s, device="cuda") for s in (0.02, 0.03)] if pool != torch.bfloat16 else [None, None]
    y_scale = torch.tensor(0.01, device="cuda") if is_narrow else None
    earlier = [random_bf16(blocks, size, kv_heads, head_dim) for _ in range(2)]
    own = [reference.to_pool(x, scale, pool) for x, scale in zip(earlier, scales, strict=True)]
    theirs = [x.cpu() for x in own]
    starts, context = torch.tensor([0, *lengths]).cumsum(0).int(), torch.tensor(contexts).int()
    batch, step = (tables, starts, context), (angles.cos(), angles.sin(), slots.cuda())
    found = ops.rotate_and_attend(
        qkv,
        *step,
        *own,
        *(tensor.cuda() for tensor in batch),
        scale=head_dim**-0.5,
        window=window,
        qkv_scale=qkv_scale,
        k_scale=scales[0],
        v_scale=scales[1],
        y_scale=y_scale,
    )
    projected, moved, divisors = (to_host(*tensors) for tensors in ((qkv, qkv_scale), step, (*scales, y_scale)))
    expected = reference.rotate_and_attend(*projected, *moved, *theirs, *batch, head_dim**-0.5, window, 0.0, *divisors)
    assert found.dtype == expected.dtype
    assert distance(found.float(), expected.float()) < (0.04 if is_narrow else 0.01)
    for mine, plain in zip(own, theirs, strict=True):
        # Products of cosine and sine are added in one rounding: a number may be the next one of its format.
        same = float((mine.cpu() == plain).float().mean())
        assert same > 0.999 and distance(from_pool(mine), from_pool(plain)) < 0.01


def to_host(*tensors: Tensor | None) -> list[Any]:
    """Them in the host's memory, what is None as it is."""
    return [None if tensor is None else tensor.cpu() for tensor in tensors]


def from_pool(x: Tensor) -> Tensor:
    """The numbers of a pool, but for their scale."""
    return (x.view(torch.float8_e4m3fn) if x.dtype == torch.uint8 else x).float()


@pytest.mark.parametrize("tokens", [1, 8, 9, 25, 32, 33, 64])
def test_integer_weights_are_multiplied_with_their_scales(tokens: int) -> None:
    x = torch.randn(tokens, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randint(-127, 128, (272, 1024), device="cuda", dtype=torch.int8)
    scale = torch.rand(272, device="cuda") * 0.01
    expected = x.double() @ (weight.double() * scale.double()[:, None]).T
    assert distance(ops.linear_int8(x, weight, scale), expected) < 4e-3
    packed = torch.randint(0, 256, (272, 512), device="cuda", dtype=torch.uint8)
    scales = torch.rand(272, 8, device="cuda") * 0.05
    expected = reference.linear_int4(x.double(), packed, scales.double(), None, 128)
    assert distance(ops.linear_int4(x, packed, scales), expected) < 4e-3


@pytest.mark.parametrize("pool", ["bfloat16", "e4m3", "int8"])
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads"), [(128, 32, 8), (64, 8, 8), (128, 28, 4), (256, 8, 4), (64, 16, 1)]
)
@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [1, 37, 100, 3, 64]])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (50, 0.0), (0, 30.0)])
def test_attention_is_that_of_plain_torch(
    pool: str, head_dim: int, heads: int, kv_heads: int, lengths: list[int], window: int, softcap: float
) -> None:
    size, width, contexts = 16, 40, [1, 37, 130, 600, 64]
    blocks = len(contexts) * width + 1
    tables = (torch.randperm(blocks - 1) + 1).view(len(contexts), width).int()
    k, v = (torch.randn(blocks, size, kv_heads, head_dim) for _ in range(2))
    scales: tuple[Tensor | None, Tensor | None] = (None, None)
    if pool == "bfloat16":
        k, v = k.bfloat16(), v.bfloat16()
    elif pool == "e4m3":
        k, v = (x.to(torch.float8_e4m3fn).view(torch.uint8) for x in (k, v))
        scales = (torch.tensor(0.9), torch.tensor(1.1))
    else:
        k, v = ((x * 30).round().clamp(-128, 127).to(torch.int8) for x in (k, v))
        scales = (torch.tensor(1 / 30), torch.tensor(1 / 30))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    context = torch.tensor(contexts).int()
    q = torch.randn(sum(lengths), heads, head_dim).bfloat16()
    moved = [tensor.cuda() for tensor in (q, k, v, tables, starts, context)]
    k_scale, v_scale = (None if scale is None else scale.cuda() for scale in scales)
    found = ops.paged_attention(
        *moved, scale=head_dim**-0.5, window=window, softcap=softcap, k_scale=k_scale, v_scale=v_scale
    )
    expected = reference.paged_attention(
        q.float(), k, v, tables, starts, context, head_dim**-0.5, window, softcap, *scales
    )
    assert distance(found, expected) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [5000, 5003])
def test_argmax_finds_the_first_largest_and_marks_rows_that_are_not_numbers(dtype: torch.dtype, columns: int) -> None:
    rows = torch.randn(5, columns, device="cuda").to(dtype)
    rows[1, 7], rows[2, 3] = 99.0, float("nan")
    rows[3] = float("-inf")
    rows[4, 4711], rows[4, 817] = 50.0, 50.0
    first = int((rows[0] == rows[0].amax()).nonzero()[0, 0])
    assert ops.argmax(rows).tolist() == [first, 7, -1, -1, 817]
    assert ops.argmax(rows[:1]).tolist() == [first]
    assert ops.argmax(rows[1:]).tolist() == [7, -1, -1, 817]
