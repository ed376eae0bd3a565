"""What this machine has: processor, cores, memory, GPUs and driver. Imports no torch and loads no NVIDIA library."""

from __future__ import annotations

import csv
import io
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.hardware.gpus import CATALOGUE, ISAS, MIB, Gpu, Isa, isa_level
from trtx.processes import ask_or_why

# A healthy nvidia-smi answers in about a second; one that hangs means a driver in trouble.
NVIDIA_SMI_TIMEOUT_S = 10.0
NVIDIA_SMI_FIELDS = ("index", "uuid", "name", "compute_cap", "memory.total", "driver_version")

# cgroup 1 writes "no limit" as the largest multiple of a page below 2^63.
NO_LIMIT_BYTES = 1 << 62


@dataclass(frozen=True)
class HostGpu:
    """One GPU as nvidia-smi describes it. `arch` is `sm_90` for compute capability 9.0."""

    index: int
    uuid: str
    name: str
    arch: str
    memory_bytes: int

    @property
    def catalogue_name(self) -> str | None:
        """The catalogue's name for it; None when the catalogue does not have it."""
        product = self.name.removeprefix("NVIDIA ")
        return next((gpu.name for gpu in CATALOGUE if product in gpu.products and gpu.arch == self.arch), None)


@dataclass(frozen=True)
class Host:
    """This machine, as far as it decides what can be built and run here.

    `num_cpus` and `memory_bytes` respect affinity and cgroup limits. `gpus_problem` says why the GPUs could not be
    listed although there is a driver.
    """

    machine: str
    cpu_model: str
    cpu_flags: frozenset[str]
    num_cpus: int
    memory_bytes: int
    gpus: tuple[HostGpu, ...] = ()
    driver: str | None = None
    gpus_problem: str | None = None

    @property
    def isa(self) -> Isa | None:
        """The newest instruction set level this machine has."""
        return isa_level(self.cpu_flags)


def read_host(*, gpus: bool = True, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Host:
    """Describe this machine. Without `gpus` nvidia-smi is not started, which saves about a second on GPU machines."""
    model, flags = read_cpuinfo(proc / "cpuinfo")
    found, driver, problem = read_gpus() if gpus else ((), None, None)
    return Host(
        machine=platform.machine(),
        cpu_model=model,
        cpu_flags=flags,
        num_cpus=count_cpus(proc, cgroup),
        memory_bytes=count_memory(proc, cgroup),
        gpus=found,
        driver=driver,
        gpus_problem=problem,
    )


def check_can_build(host: Host, gpu: Gpu) -> None:
    """Refuse to build or run code for a CPU of the catalogue on a machine that cannot run it; GPUs are not looked at.

    Every program is loaded and asked before it is published, so the building machine must be able to run it.

    Raises EnvironmentProblem.
    """
    if gpu.isa is None:
        return
    if host.machine != "x86_64":
        raise EnvironmentProblem(
            f"{gpu.arch} engines cannot be built on this machine",
            why=f"its processor is {host.machine}, and the catalogue's CPU targets are {', '.join(ISAS)}",
            fix="use an x86-64 machine",
        )
    if missing := sorted(gpu.isa.flags - host.cpu_flags):
        raise EnvironmentProblem(
            f"{gpu.arch} engines cannot be built on this machine",
            why=f"they need {', '.join(missing)}, which its processor ({host.cpu_model}) does not have",
            fix="use a newer machine, or gpu: cpu" if host.isa else "use a machine with AVX2",
        )


def read_cpuinfo(path: Path) -> tuple[str, frozenset[str]]:
    """Model name and feature flags of the first processor. Unknown names are "unknown"; aarch64 says `Features`."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "unknown", frozenset()
    fields: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", "unknown"), frozenset(flags.split())


def count_cpus(proc: Path, cgroup: Path) -> int:
    """Processors this process may use: its affinity, or its cgroups' smallest quota (rounded down); at least 1."""
    counts = [len(os.sched_getaffinity(0))]
    for folder in cgroup_folders(proc, cgroup, "cpu"):
        # cgroup 2 has "<quota> <period>" in microseconds, or "max <period>"; cgroup 1 two files, -1 for no limit.
        quota = _read_words(folder / "cpu.max")
        quota = quota or _read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
            counts.append(int(quota[0]) // int(quota[1]))
    return max(min(counts), 1)


def count_memory(proc: Path, cgroup: Path) -> int:
    """Bytes of memory this process may use: the machine's, or its cgroups' smallest limit; 0 when unknown."""
    sizes = [int(words[1]) * 1024 for words in _read_lines(proc / "meminfo") if words[0] == "MemTotal:"]
    for folder in cgroup_folders(proc, cgroup, "memory"):
        limit = _read_words(folder / "memory.max") or _read_words(folder / "memory.limit_in_bytes")
        if limit and limit[0].isdigit() and 0 < int(limit[0]) < NO_LIMIT_BYTES:
            sizes.append(int(limit[0]))
    return min(sizes, default=0)


def cgroup_folders(proc: Path, cgroup: Path, controller: str) -> list[Path]:
    """This process's cgroup and all above it, which limit it too; a Slurm job has its limits in one of them.

    Format of /proc/self/cgroup: cgroups(7). A container may see itself at the root while the file names a path
    outside, so folders that do not exist are left out.
    """
    folders: list[Path] = []
    for line in _read_lines(proc / "self/cgroup"):
        _, controllers, path = " ".join(line).split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [cgroup / controllers, cgroup / controller] if controllers else [cgroup]
        root = next((folder for folder in roots if folder.is_dir()), cgroup)
        inner = root / path.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return folders


def _read_lines(path: Path) -> list[list[str]]:
    """Words of every line that has any; nothing for a file that cannot be read."""
    try:
        return [words for line in path.read_text().splitlines() if (words := line.split())]
    except OSError:
        return []


def _read_words(path: Path) -> list[str]:
    return [word for line in _read_lines(path) for word in line]


def read_gpus() -> tuple[tuple[HostGpu, ...], str | None, str | None]:
    """NVIDIA GPUs, the driver's version, and why they could not be listed; without nvidia-smi there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None, None
    argv = [program, f"--query-gpu={','.join(NVIDIA_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    answer, why = ask_or_why(argv, timeout_s=NVIDIA_SMI_TIMEOUT_S)
    if answer is None:
        return (), None, f"nvidia-smi: {why}"
    return parse_nvidia_smi(answer)


def parse_nvidia_smi(text: str) -> tuple[tuple[HostGpu, ...], str | None, str | None]:
    """GPUs, driver version and problem from CSV lines with the fields of NVIDIA_SMI_FIELDS; memory is in MiB."""
    gpus: list[HostGpu] = []
    driver: str | None = None
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if not row:
            continue
        try:
            index, uuid, name, capability, memory, driver = (value.strip() for value in row)
            gpus.append(HostGpu(int(index), uuid, name, f"sm_{capability.replace('.', '')}", int(memory) * MIB))
        except ValueError:
            return (), None, f"nvidia-smi printed a line that is not understood: {','.join(row)}"
    return tuple(gpus), driver, None


def visible_gpus(host: Host, environ: Mapping[str, str]) -> tuple[HostGpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, by index or UUID (a prefix is enough), in its order.

    Like CUDA itself: an unknown entry hides itself and everything after it.
    """
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return host.gpus
    chosen: list[HostGpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        matches = [gpu for gpu in host.gpus if entry and (str(gpu.index) == entry or gpu.uuid.startswith(entry))]
        if len(matches) != 1:
            break
        chosen.append(matches[0])
    return tuple(chosen)
