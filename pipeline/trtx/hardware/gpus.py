"""The catalogue: every device a recipe can name, as data. CPUs are in it too, named by what they are compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from trtx.errors import UsageProblem, did_you_mean

MIB = 1 << 20
Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Isa:
    """One instruction set level of x86-64.

    `flags` are the names in /proc/cpuinfo that a machine must have, by the levels of the x86-64 psABI
    (https://gitlab.com/x86-psABIs/x86-64-ABI, "Micro-Architecture Levels"). Linux has other names for some:
    SSE3 is pni, CMPXCHG16B cx16, LAHF-SAHF lahf_lm, LZCNT abm; OSXSAVE is not listed, xsave stands for it.
    `simdlen` (bits) and `march` are what inductor's C++ code is compiled with (`cpp.simdlen`, `cpp.march`).
    """

    name: str
    flags: frozenset[str]
    simdlen: int
    march: str


V2_FLAGS = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
V3_FLAGS = V2_FLAGS | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4_FLAGS = V3_FLAGS | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# Oldest first; a machine with one level has all before it.
ISAS: Mapping[str, Isa] = MappingProxyType(
    {
        "x86-64-v3": Isa("x86-64-v3", V3_FLAGS, simdlen=256, march="x86-64-v3"),
        "x86-64-v4": Isa("x86-64-v4", V4_FLAGS, simdlen=512, march="x86-64-v4"),
    }
)


@dataclass(frozen=True)
class Gpu:
    """One device of the catalogue.

    `arch` is what code is compiled for: a CUDA architecture (`sm_90`) or a name in ISAS. `memory_bytes` is what
    nvidia-smi reports as total memory with ECC on, which is less than the name says; None for CPUs, whose memory
    is the machine's. `products` are the names by which nvidia-smi calls it.
    """

    name: str
    kind: Kind
    arch: str
    memory_bytes: int | None = None
    aliases: tuple[str, ...] = ()
    products: tuple[str, ...] = ()

    @property
    def isa(self) -> Isa | None:
        """The instruction set of a CPU, None for a GPU."""
        return ISAS.get(self.arch)


def _nvidia(name: str, arch: str, memory_mib: int, aliases: str, *products: str) -> Gpu:
    """One GPU; aliases separated by spaces, products without the leading "NVIDIA"."""
    return Gpu(name, "gpu", arch, memory_mib * MIB, tuple(aliases.split()), products)


# Architectures: https://developer.nvidia.com/cuda-gpus (compute capability).
CATALOGUE: tuple[Gpu, ...] = (
    Gpu("cpu", "cpu", "x86-64-v3", aliases=("cpu-avx2",)),
    Gpu("cpu-avx512", "cpu", "x86-64-v4"),
    _nvidia("a100-sxm-40gb", "sm_80", 40960, "a100-40gb", "A100-SXM4-40GB"),
    _nvidia("a100-sxm-80gb", "sm_80", 81920, "a100 a100-80gb a100-sxm", "A100-SXM4-80GB"),
    _nvidia("a100-pcie-40gb", "sm_80", 40960, "", "A100-PCIE-40GB"),
    _nvidia("a100-pcie-80gb", "sm_80", 81920, "a100-pcie", "A100 80GB PCIe"),
    _nvidia("a30-24gb", "sm_80", 24576, "a30", "A30"),
    _nvidia("a10-24gb", "sm_86", 23028, "a10 a10g", "A10", "A10G"),
    _nvidia("a40-48gb", "sm_86", 46068, "a40", "A40"),
    _nvidia("rtx-3090-24gb", "sm_86", 24576, "rtx-3090", "GeForce RTX 3090"),
    _nvidia("l4-24gb", "sm_89", 23034, "l4", "L4"),
    _nvidia("l40-48gb", "sm_89", 46068, "l40", "L40"),
    _nvidia("l40s-48gb", "sm_89", 46068, "l40s", "L40S"),
    _nvidia("rtx-4090-24gb", "sm_89", 24564, "rtx-4090", "GeForce RTX 4090"),
    _nvidia("h100-sxm-80gb", "sm_90", 81559, "h100 h100-80gb h100-sxm", "H100 80GB HBM3"),
    _nvidia("h100-pcie-80gb", "sm_90", 81559, "h100-pcie", "H100 PCIe"),
    _nvidia("h100-nvl-94gb", "sm_90", 95830, "h100-nvl", "H100 NVL"),
    _nvidia("h200-sxm-141gb", "sm_90", 143771, "h200 h200-sxm", "H200"),
    _nvidia("gh200-96gb", "sm_90", 97871, "gh200", "GH200 480GB"),
    _nvidia("b200-sxm-180gb", "sm_100", 183359, "b200 b200-sxm", "B200"),
    _nvidia("gb200-186gb", "sm_100", 189471, "gb200", "GB200"),
    _nvidia("b300-sxm-288gb", "sm_103", 275040, "b300 b300-sxm", "B300 SXM6 AC"),
    _nvidia("rtx-5090-32gb", "sm_120", 32607, "rtx-5090", "GeForce RTX 5090"),
    _nvidia(
        "rtx-pro-6000-96gb",
        "sm_120",
        97887,
        "rtx-pro-6000",
        "RTX PRO 6000 Blackwell Server Edition",
        "RTX PRO 6000 Blackwell Workstation Edition",
    ),
)

# Every accepted name, aliases included.
GPUS: Mapping[str, Gpu] = MappingProxyType({name: gpu for gpu in CATALOGUE for name in (gpu.name, *gpu.aliases)})


def find_gpu(name: str) -> Gpu:
    """The device with a name or alias. Raises UsageProblem with the nearest name."""
    try:
        return GPUS[name]
    except KeyError:
        raise UsageProblem(f"there is no device '{name}' in the catalogue", fix=did_you_mean(name, GPUS)) from None


def isa_level(cpu_flags: frozenset[str]) -> Isa | None:
    """The newest instruction set level that a machine has in full; None for less than x86-64-v3."""
    levels = [isa for isa in ISAS.values() if isa.flags <= cpu_flags]
    return levels[-1] if levels else None
