"""Builds the kernel library of one GPU architecture, as trtx.kernels.build does for processors. Imports no torch.

    python -m trtx.kernels.build_cuda job.json

nvcc compiles the kernels, g++ what checks tensors and calls cuBLASLt, whose header and library are those that torch
came with.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from trtx.errors import EnvironmentProblem, StepFailed
from trtx.files import canonical_json, sha256_bytes, sha256_file
from trtx.kernels.build import SOURCES as CPP_SOURCES
from trtx.kernels.build import LibraryJob, run_compiler, run_job, torch_folder
from trtx.kernels.shelf import alone, put, take

SOURCES = Path(__file__).parent / "cuda"
KERNELS = (
    "prompt_attention",
    "decode_attention",
    "streamed_product",
    "few_tokens",
    "norm",
    "rotate",
    "gate",
    "argmax",
    "widen",
)
GLUE = ("ops", "attention_ops", "layer_ops", "products")
COMMON_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-frandom-seed=trtx")
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-lineinfo")
# Products of 8 bits and Hopper's own instructions are only in the code that is for exactly this architecture.
EXACT = {"sm_90": "90a", "sm_100": "100a", "sm_103": "103a", "sm_120": "120a"}


def find_nvcc() -> Path:
    """CUDA's compiler: of $CUDA_HOME, or of the PATH. Raises EnvironmentProblem when there is none."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if found is None:
        raise EnvironmentProblem(
            "there is no CUDA compiler on this machine",
            why="kernels of GPU engines are compiled by nvcc when an engine is built; running one needs no compiler",
            fix="install the CUDA toolkit that your torch was built with, and set CUDA_HOME or PATH",
        )
    return Path(found)


def make_namespace(arch: str, compilers: str) -> str:
    """Name of a library's operators, `trtx_` and 16 digits that change with all that its bytes depend on."""
    sources = [*sorted(SOURCES.iterdir()), CPP_SOURCES / "runner.cpp"]
    facts = {
        "sources": {path.name: sha256_file(path) for path in sources},
        "flags": [arch, *COMMON_FLAGS, *NVCC_FLAGS],
        "torch": version("torch"),
        "compilers": compilers,
    }
    return f"trtx_{sha256_bytes(canonical_json(facts))[:16]}"


def build_library(job: LibraryJob) -> None:
    """Take the library from the shelf, or compile, link and put it there; `march` of the job is the architecture.

    Of builds side by side one compiles, and the others wait for it. Raises StepFailed with the compiler's first
    complaint.
    """
    with alone(Path(job.shelf), job.namespace):
        if not take(Path(job.shelf), job.namespace, Path(job.library)):
            _compile_library(job)


def _compile_library(job: LibraryJob) -> None:
    nvcc, work = find_nvcc(), Path(job.work)
    code = EXACT.get(job.march, job.march.removeprefix("sm_"))
    target = f"-gencode=arch=compute_{code},code=sm_{code}"
    torch, cuda = torch_folder(), nvcc.resolve().parent.parent
    cublas = find_cublas()
    includes = [torch / "include", torch / "include/torch/csrc/api/include", cuda / "include", cublas / "include"]
    glue = [*COMMON_FLAGS, f"-DTRTX_NAMESPACE={job.namespace}", *(f"-isystem{path}" for path in includes)]
    units = [(str(nvcc), name, [*NVCC_FLAGS, target], SOURCES / f"{name}.cu") for name in KERNELS]
    units += [(job.compiler, name, glue, SOURCES / f"{name}.cpp") for name in GLUE]
    units.append((job.compiler, "runner", [*glue, "-DTRTX_CUDA"], CPP_SOURCES / "runner.cpp"))
    with ThreadPoolExecutor(max(job.processes, 1)) as pool:
        list(
            pool.map(
                lambda unit: run_compiler(
                    job, unit[1], [*unit[2], "-c", str(unit[3]), "-o", str(work / f"{unit[1]}.o")], compiler=unit[0]
                ),
                units,
            )
        )
    objects = [str(work / f"{name}.o") for _, name, _, _ in units]
    libraries = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda"]
    libraries += [
        f"-L{cublas / 'lib'}",
        "-l:libcublasLt.so.13",
        f"-L{cuda / 'lib64'}",
        "-lcudart_static",
        "-ldl",
        "-lrt",
    ]
    link = ["-shared", "-Wl,--build-id=none", "-s", *objects, *libraries, "-o", job.library]
    run_compiler(job, "link", link)
    with contextlib.suppress(OSError):
        put(Path(job.shelf), job.namespace, Path(job.library))


def find_cublas() -> Path:
    """The folder with cuBLASLt's header and library. Raises StepFailed when torch came without them."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        for header in sorted(Path(root).glob("*/include/cublasLt.h")):
            return header.parent.parent
    raise StepFailed(
        "the kernels cannot be built",
        why="cuBLASLt's header is not there: this torch was not built for CUDA, or came without NVIDIA's packages",
        fix="install torch with CUDA from PyPI",
    )


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:], build_library))
