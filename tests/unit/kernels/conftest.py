"""The kernel library of this machine's compiler, built once, and the levels that this machine can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trtx.backends.inductor.build import compiler_version, find_compiler
from trtx.kernels.build import LibraryJob, build_library, make_namespace
from trtx.paths import kernels_dir
from trtx.runtime.native import load_kernels

# `TRTX_TEST_MARCH=x86-64-v4 pytest tests/unit/kernels` holds the library of another target against the same references.
ARCH = os.environ.get("TRTX_TEST_MARCH", "x86-64-v3")


def make_job(folder: Path, shelf: Path) -> LibraryJob:
    compiler = find_compiler()
    return LibraryJob(
        march=ARCH,
        namespace=make_namespace(ARCH, compiler_version(compiler)),
        compiler=str(compiler),
        work=str(folder),
        library=str(folder / "kernels.so"),
        shelf=str(shelf),
        processes=2,
    )


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> LibraryJob:
    """The library that engines built on this machine carry."""
    job = make_job(tmp_path_factory.mktemp("kernels"), kernels_dir(os.environ))
    build_library(job)
    return job


@pytest.fixture(scope="session")
def loaded(library: LibraryJob) -> Any:
    return load_kernels(Path(library.library), library.namespace)


@pytest.fixture(params=["avx512_bf16", "baseline"])
def kernels(loaded: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The operators, at each level in turn."""
    if request.param not in loaded.supported_levels():
        pytest.skip(f"this processor has no {request.param}")
    before = loaded.current_level()
    loaded.choose_level(request.param)
    yield loaded
    loaded.choose_level(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
