"""What a plan must know of the world, gathered before it is made; nothing here imports torch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.files import canonical_json, read_file, read_json, sha256_bytes, write_json
from trtx.hardware import software
from trtx.hardware.host import Host, read_host
from trtx.hardware.versions import installed_version
from trtx.kernels.sources import sources_digest
from trtx.paths import cache_dir
from trtx.plan.lock import LOCK_SUFFIX
from trtx.processes import ask

ABSENT = "absent"

# Distributions whose version may change a stage's bytes. What is not here provably cannot.
TOOLCHAIN: dict[str, tuple[str, ...]] = {
    "download": (),
    "dataset": (),
    "calibrate": ("torch", "transformers", "nvidia-modelopt", "tokenizers"),
    "convert": (),
    "build": ("torch",),
    "benchmark": ("torch",),
    # A package pins all that it installs: see Facts.pins.
    "package": (),
}


@dataclass(frozen=True)
class Facts:
    """The machine and the tools a plan is made for.

    `versions` by distribution name; `pins` are the versions that a package installs; `kernels` is the digest of the
    kernels' sources, `own_code` that of all of trtx's files; `python` the interpreter of the steps; `driver` the
    version of the NVIDIA driver, where there is one; `nvcc` that of CUDA's compiler, where a plan has GPU engines.
    """

    host: Host
    versions: Mapping[str, str]
    pins: Mapping[str, str]
    compiler: str
    kernels: str
    own_code: str
    python: str
    cache_dir: Path
    driver: str | None = None
    nvcc: str = ABSENT

    def toolchain(self) -> dict[str, str]:
        """Everything that can stand in the toolchain of a step's factors."""
        compilers = {"c++": self.compiler, "nvcc": self.nvcc, "kernels": self.kernels}
        return {**self.versions, **self.pins, **compilers, "trtx": self.own_code}

    def machine(self) -> dict[str, str]:
        """The facts of this machine that can stand in the factors of a step that measures."""
        return {"cpu": self.host.cpu_model, "cpus": str(self.host.num_cpus)}


def gather_facts(environ: Mapping[str, str], distributions: Iterable[str] = (), *, cuda: bool = False) -> Facts:
    """Ask this machine; `distributions` are named by sources beside those of TOOLCHAIN; `cuda`: for GPU engines."""
    names = {name for stage in TOOLCHAIN.values() for name in stage} | set(distributions)
    return Facts(
        host=read_host(gpus=False),
        versions={name: installed_version(name) or ABSENT for name in sorted(names)},
        pins=read_pins(cache_dir(environ)),
        compiler=read_compiler(environ),
        kernels=sources_digest(),
        own_code=own_code_digest(),
        python=sys.executable,
        cache_dir=cache_dir(environ),
        driver=read_driver_version(),
        nvcc=read_nvcc(environ) if cuda else ABSENT,
    )


def read_driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Version of the loaded NVIDIA kernel module, by itself; starting nvidia-smi would take a second.

    The first line is `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 …`, or with `Open Kernel
    Module for x86_64`.
    """
    try:
        first = path.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return None
    match = re.search(r"\s(\d{3,}(?:\.\d+)+)\s", f"{first} ")
    return match[1] if match else None


def read_compiler(environ: Mapping[str, str]) -> str:
    """The C++ compiler that builds use, such as `g++ 12.2.0`, or `absent`."""
    path = shutil.which("g++", path=environ.get("PATH", os.defpath))
    if path is None:
        return ABSENT
    version = ask([path, "-dumpfullversion"], timeout_s=20)
    return f"g++ {version.strip()}" if version else ABSENT


def read_nvcc(environ: Mapping[str, str]) -> str:
    """The CUDA compiler that builds use, such as `nvcc 13.0.88`, or `absent`."""
    version = software.read_nvcc(environ)
    return f"nvcc {version}" if version else ABSENT


def read_pins(cache: Path) -> dict[str, str]:
    """What a package pins: Python and every distribution its server needs, directly or not.

    Following all requirements takes 50 ms, so the answer is kept in the cache with the names (versions included) of
    all installed distributions. Without the engine packages there is nothing to pin.
    """
    folders = [Path(entry) for entry in sys.path if Path(entry).is_dir()]
    names = (entry.name for folder in folders for entry in os.scandir(folder))
    installed = sorted(name for name in names if name.endswith(".dist-info"))
    question = sha256_bytes(canonical_json([platform.python_version(), installed]))
    memo = cache / "memo" / "pins.json"
    try:
        answer = read_json(memo)
        if answer["question"] == question:
            pins: dict[str, str] = answer["pins"]
            return pins
    except (OSError, ValueError, KeyError):
        pass
    from trtx.backends.shipping import pinned_requirements

    try:
        pins = {"python": platform.python_version(), **pinned_requirements()}
    except EnvironmentProblem:
        return {"python": platform.python_version(), "engine": ABSENT}
    with contextlib.suppress(OSError, EnvironmentProblem):
        write_json(memo, {"question": question, "pins": pins})
    return pins


def own_code_digest() -> str:
    """SHA-256 over trtx's own files: a package ships them, so they are a factor of the package stage.

    Links are followed: in a source tree runners, templates and recipes are links to folders. The lock of a recipe
    there is no file of trtx's.
    """
    root = str(Path(__file__).parent.parent)
    lines = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        paths = [f"{folder}/{name}" for name in sorted(names) if not name.endswith((".pyc", LOCK_SUFFIX))]
        # Some 300 small files in every plan: no Path is made of them, and each is read at once.
        lines += [f"{sha256_bytes(read_file(path))}  {path[len(root) + 1 :]}" for path in paths]
    return sha256_bytes("\n".join(lines).encode())
