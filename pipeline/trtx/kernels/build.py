"""Builds the kernel library of one instruction set: `python -m trtx.kernels.build job.json`. Imports no torch.

The library holds every kernel in several levels, compiled from the same sources with other flags: `baseline`, what
every processor of the target has, and better ones, of which the library takes the best that a processor has when it
runs. So one library runs on all processors of its target, and weight layouts know no instruction set.

Its operators live in a namespace that names its sources and flags: libraries of several versions and targets can be
loaded side by side, and a program can only meet the library that it was made for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trtx.errors import StepFailed, TrtxError
from trtx.files import canonical_json, sha256_bytes, sha256_file
from trtx.kernels.shelf import put, take
from trtx.processes import die_with_parent, start_process

SOURCES = Path(__file__).parent / "cpp"

# Nobody looks at errno or floating-point exceptions. GCC 12 warns of its own
# intrinsics (its bug 105593), so warnings about uninitialized vectors are off.
KERNEL_FLAGS = ("-O2", "-fno-math-errno", "-fno-trapping-math", "-Wno-maybe-uninitialized", "-Wno-uninitialized")
GLUE_FLAGS = ("-O1",)
COMMON_FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-frandom-seed=trtx")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")


@dataclass(frozen=True)
class Unit:
    """One compilation: a source with flags."""

    source: str
    flags: tuple[str, ...]
    name: str


class LibraryJob(BaseModel):
    """A library to build with operators in `namespace`, in so many processes.

    `work` is scratch space, `library` the file to write. `shelf` keeps libraries for the builds of other engines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    march: str
    namespace: str
    compiler: str
    work: str
    library: str
    shelf: str
    processes: int


def make_levels(march: str) -> dict[str, tuple[str, ...]]:
    """Flags of every level of a library beyond the target's own, by name; the target as GCC's -march."""
    levels: dict[str, tuple[str, ...]] = {"baseline": ()}
    if march.startswith("x86-64"):
        levels["avx512_bf16"] = (*AVX512, "-mavx512bf16", "-mavx512vnni")
    return levels


def make_namespace(march: str, compiler_version: str) -> str:
    """Name of a library's operators, `trtx_` and 16 digits that change with all that its bytes depend on."""
    facts = {
        "sources": {path.name: sha256_file(path) for path in sorted(SOURCES.iterdir())},
        "units": [[unit.source, *unit.flags] for unit in _make_units(march, "")],
        "torch": version("torch"),
        "compiler": compiler_version,
    }
    return f"trtx_{sha256_bytes(canonical_json(facts))[:16]}"


def build_library(job: LibraryJob) -> None:
    """Take the library from the shelf, or compile, link and put it there.

    Raises StepFailed with the compiler's first complaint.
    """
    if take(Path(job.shelf), job.namespace, Path(job.library)):
        return
    work = Path(job.work)
    units = _make_units(job.march, job.namespace)
    with ThreadPoolExecutor(job.processes) as pool:
        list(pool.map(lambda unit: _compile(job, unit), units))
    objects = [str(work / f"{unit.name}.o") for unit in units]
    libraries = [f"-L{torch_folder() / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    link = ["-shared", "-Wl,--build-id=none", "-s", *objects, *libraries]
    run_compiler(job, "link", [*link, "-o", job.library])
    # A shelf that is full or belongs to somebody else costs the next build some seconds.
    with contextlib.suppress(OSError):
        put(Path(job.shelf), job.namespace, Path(job.library))


@cache
def torch_folder() -> Path:
    """Where torch is installed; torch is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise StepFailed("the kernels cannot be built", why="torch is not installed", fix="install trtx[engine]")
    return Path(spec.submodule_search_locations[0])


def _make_units(march: str, namespace: str) -> list[Unit]:
    """All compilations, longest first."""
    levels = make_levels(march)
    target = f"-march={march}"
    glue = (*COMMON_FLAGS, *GLUE_FLAGS, target)
    units = [Unit("library", (*glue, f"-DTRTX_NAMESPACE={namespace}"), "library")]
    for level, flags in levels.items():
        # Vectors are written out in the sources; loops that are left to the compiler are many in w8a8 only.
        kernel = (*COMMON_FLAGS, *KERNEL_FLAGS, target, *flags, f"-DTRTX_LEVEL={level}")
        units += [Unit(name, kernel, f"{name}_{level}") for name in ("linear", "attention")]
        units.append(Unit("w8a8", (*kernel, "-O3"), f"w8a8_{level}"))
    units.append(Unit("dispatch", (*glue, *(f"-DTRTX_HAS_{level.upper()}" for level in levels)), "dispatch"))
    return units


def _compile(job: LibraryJob, unit: Unit) -> None:
    torch = torch_folder()
    includes = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
    # Assertions quote file names: they must not tell where this machine keeps them.
    maps = [f"-ffile-prefix-map={path}=." for path in (torch.parent, SOURCES, job.work)]
    output = ["-c", str(SOURCES / f"{unit.source}.cpp"), "-o", str(Path(job.work) / f"{unit.name}.o")]
    run_compiler(job, unit.name, [*unit.flags, *includes, *maps, *output])


def run_compiler(job: LibraryJob, name: str, arguments: Sequence[str], compiler: str | None = None) -> None:
    """Run the job's compiler, or another one, with a log of its own. Raises StepFailed with its first complaint."""
    work = Path(job.work)
    log = work / f"{name}.log"
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TMPDIR": job.work}
    process = start_process(
        [compiler or job.compiler, *arguments], folder=work, environment=environment, log=log, own_group=False
    )
    if process.wait() != 0:
        said = [line for line in log.read_text(errors="replace").splitlines() if "error" in line]
        raise StepFailed(
            f"compiling the kernels failed ({name})",
            why=said[0] if said else f"exit code {process.returncode}",
            fix="the compiler's output is in the log of this step",
        )


def run_job(arguments: list[str], build: Callable[[LibraryJob], None]) -> int:
    """Build the library of the job file named by the one argument; a failure shows the compilers' logs."""
    die_with_parent(signal.SIGKILL)
    job = LibraryJob.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        build(job)
    except TrtxError as error:
        for log in sorted(Path(job.work).glob("*.log")):
            sys.stderr.write(log.read_text(errors="replace"))
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:], build_library))
