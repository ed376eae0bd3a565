"""The GPU's kernels beside their meaning in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trtx.backends.inductor.build import compiler_version, find_compiler, nvcc_version
from trtx.kernels import build_cuda, ops, reference
from trtx.kernels.build import LibraryJob
from trtx.runtime.native import load_kernels

ARCH = "sm_90"


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
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
    load_kernels(path, namespace)
    ops.use_namespace(namespace)
    torch.manual_seed(5)
    yield
    ops.use_namespace(ops.DEFAULT_NAMESPACE)


def distance(found: Tensor, expected: Tensor) -> float:
    expected = expected.to(found.device).double()
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 33, 100, 200])
def test_products_are_those_of_float64(tokens: int) -> None:
    x = torch.randn(tokens, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(336, 1024, device="cuda", dtype=torch.bfloat16) * 0.02
    assert distance(ops.linear_bf16(x, weight), x.double() @ weight.double().T) < 4e-3
    narrow, thin = x.to(torch.float8_e4m3fn), (weight * 20).to(torch.float8_e4m3fn)
    factor = torch.tensor(0.37, device="cuda")
    assert distance(ops.linear_e4m3(narrow, thin, factor), narrow.double() @ thin.double().T * 0.37) < 4e-3


@pytest.mark.parametrize("tokens", [1, 8, 9, 64])
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


def test_argmax_marks_rows_that_are_not_numbers() -> None:
    rows = torch.randn(4, 5000, device="cuda")
    rows[1, 7], rows[2, 3] = 99.0, float("nan")
    rows[3] = float("-inf")
    assert ops.argmax(rows).tolist() == [int(rows[0].argmax()), 7, -1, -1]
    assert ops.argmax(rows[:1]).tolist() == [int(rows[0].argmax())]
