from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim, export

from tests.unit.kernels.conftest import ARCH, make_job
from trtx.errors import StepFailed, VerificationFailed
from trtx.files import sha256_file, write_json
from trtx.kernels import build, ops, reference
from trtx.kernels.build import LibraryJob, build_library, make_namespace
from trtx.kernels.shelf import put
from trtx.runtime.native import load_kernels


def test_a_library_is_taken_from_the_shelf_and_a_damaged_one_is_not(
    library: LibraryJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    put(shelf, library.namespace, Path(library.library))
    monkeypatch.setattr(build, "_compile", lambda job, unit: pytest.fail("it was compiled again"))
    job = make_job(tmp_path, shelf)
    build_library(job)
    assert sha256_file(Path(job.library)) == sha256_file(Path(library.library))
    next(shelf.iterdir()).write_bytes(b"damaged")
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        build_library(job)


def test_building_again_elsewhere_gives_the_same_bytes(library: LibraryJob, tmp_path: Path) -> None:
    job = make_job(tmp_path, tmp_path / "empty")
    write_json(tmp_path / "job.json", job.model_dump(mode="json"))
    argv = [sys.executable, "-m", "trtx.kernels.build", str(tmp_path / "job.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sha256_file(Path(job.library)) == sha256_file(Path(library.library))
    content = Path(job.library).read_bytes()
    assert str(tmp_path).encode() not in content
    assert str(build.SOURCES).encode() not in content


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'kernels.h:1: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o700)
    job = make_job(tmp_path, tmp_path / "empty").model_copy(update={"compiler": str(compiler)})
    with pytest.raises(StepFailed) as caught:
        build_library(job)
    assert "no such luck" in caught.value.why
    write_json(tmp_path / "job.json", job.model_dump(mode="json"))
    argv = [sys.executable, "-m", "trtx.kernels.build", str(tmp_path / "job.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no such luck" in done.stderr.splitlines()[-1] + done.stderr


def test_building_imports_no_torch() -> None:
    script = "import sys, trtx.kernels.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_namespace_changes_with_target_and_compiler() -> None:
    assert make_namespace(ARCH, "12.2.0") == make_namespace(ARCH, "12.2.0")
    assert len({make_namespace(ARCH, "12.2.0"), make_namespace("x86-64", "12.2.0"), make_namespace(ARCH, "13")}) == 3


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"no library")
    with pytest.raises(VerificationFailed, match=r"kernels\.so cannot be used"):
        load_kernels(path, "trtx_0000000000000000")


def test_a_library_of_another_namespace_is_refused(library: LibraryJob) -> None:
    with pytest.raises(VerificationFailed, match="cannot be used"):
        load_kernels(Path(library.library), "trtx_1111111111111111")


def test_without_a_library_the_operators_are_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_current", ops.DEFAULT_NAMESPACE)
    x, weight, scale = torch.randn(2, 3, 8), torch.randint(-9, 9, (4, 8), dtype=torch.int8), torch.rand(4)
    assert torch.equal(ops.linear_int8(x, weight, scale), reference.linear_int8(x, weight, scale))
    halves = x.half()
    assert torch.equal(ops.linear_int8(halves, weight, scale), reference.linear_int8(halves, weight, scale))


def test_a_traced_module_keeps_the_operators_with_open_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_current", ops.DEFAULT_NAMESPACE)

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return ops.linear(x, weight) + 1

    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    exported = export(Module(), (x, weight), dynamic_shapes={"x": {0: Dim("M", min=1, max=99)}, "weight": None})
    assert f"torch.ops.{ops.DEFAULT_NAMESPACE}.linear_bf16" in exported.graph_module.code
    assert exported.module()(x[:3], weight).shape == (3, 8)
