"""What a build is made from: shapes, formats and a target, never weight values."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trtx import __version__
from trtx.backends.inductor.choices import ProgramChoices
from trtx.backends.inductor.replay import KernelConfigs
from trtx.errors import UsageProblem, did_you_mean
from trtx.hardware.gpus import ISAS, Isa
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import SIMULATED_ON_CPU, QuantFormat
from trtx.models.layout import make_layout, make_shard
from trtx.runtime.card import CompiledFor, Device, EngineCard, Kernels, KvCache, Limits, Program, Rank

ProgramName = Literal["step"]

# GPUs whose kernels were tried.
CUDA_ARCHS = ("sm_90",)

KV_DTYPES: dict[str, Literal["float8_e4m3fn", "int8"]] = {"fp8": "float8_e4m3fn", "int8": "int8"}


class EngineSpec(BaseModel):
    """Everything that the bytes of an engine's programs depend on, besides the toolchain.

    `attention` is the form of attention: the kernel library's, or plain torch, with which it is compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    quantization: QuantFormat
    dtype: DType
    limits: Limits
    tokens_per_block: int
    rank: Rank
    arch: str
    attention: Literal["native", "gather"] = "native"

    @property
    def device(self) -> Device:
        """What the architecture is of."""
        return "cuda" if self.arch.startswith("sm_") else "cpu"

    @property
    def max_blocks(self) -> int:
        """Blocks that the longest sequence takes."""
        return math.ceil(self.limits.max_seq_len / self.tokens_per_block)


class CompileJob(BaseModel):
    """One program to compile, for kernels of a namespace.

    `work` is scratch space, `package` and `facts` the two files to write. `configs` are those of Triton kernels that an
    earlier build measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: EngineSpec
    program: ProgramName
    kernels: str
    compiler: str
    work: str
    package: str
    facts: str
    configs: KernelConfigs = {}


class TuneJob(BaseModel):
    """Products to measure with the kernel `library` of a namespace; `records` is the file to write.

    `given` are records of an earlier build, which is not measured again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: EngineSpec
    namespace: str
    library: str
    records: str
    given: tuple[str, ...] = ()


class CompileFacts(BaseModel):
    """What the compiler says about a program it made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constants: tuple[str, ...]
    choices: ProgramChoices


def find_isa(arch: str) -> Isa:
    """The instruction set that an architecture such as `x86-64-v3` stands for.

    Raises UsageProblem when this backend has no compiler for it.
    """
    if arch not in ISAS:
        raise UsageProblem(
            f"the inductor backend cannot compile for {arch} yet",
            why="it compiles for CPUs",
            fix=did_you_mean(arch, ISAS),
        )
    return ISAS[arch]


def make_compiled_for(spec: EngineSpec, vector_isa: str) -> CompiledFor:
    """The hardware of a spec. Raises UsageProblem for one that this backend has no compiler for."""
    if spec.device == "cuda":
        if spec.arch not in CUDA_ARCHS:
            raise UsageProblem(
                f"the inductor backend cannot compile for {spec.arch} yet",
                why=f"its kernels were tried on {', '.join(CUDA_ARCHS)}",
                fix=did_you_mean(spec.arch, CUDA_ARCHS),
            )
        return CompiledFor(device="cuda", arch=spec.arch, isa="")
    return CompiledFor(
        device="cpu",
        arch=spec.arch,
        isa=vector_isa,
        cpu_flags=tuple(sorted(find_isa(spec.arch).flags)),
        simulated=spec.quantization.algorithm in SIMULATED_ON_CPU,
    )


def make_kv_cache(spec: EngineSpec) -> KvCache:
    """The pools of one rank."""
    shard = make_shard(spec.model, spec.rank.tensor, spec.rank.pipeline, spec.rank.rank)
    return KvCache(
        dtype=KV_DTYPES.get(spec.quantization.kv_cache, spec.dtype),
        tokens_per_block=spec.tokens_per_block,
        num_layers=len(shard.layers),
        num_kv_heads=len(shard.kv_heads),
        head_dim=spec.model.head_dim,
    )


def make_card(
    spec: EngineSpec,
    programs: dict[ProgramName, Program],
    toolchain: dict[str, str],
    vector_isa: str,
    kernels: Kernels | None = None,
    products: tuple[str, ...] = (),
) -> EngineCard:
    """The card of an engine with these programs and kernels; `vector_isa` is what the compiler reports it used.

    Raises UsageProblem for an architecture that this backend has no compiler for.
    """
    rank = spec.rank
    layout = make_layout(spec.model, spec.quantization, spec.dtype, rank.tensor, rank.pipeline, rank.rank)
    return EngineCard(
        backend="inductor",
        model=spec.model,
        quantization=spec.quantization,
        dtype=spec.dtype,
        kv_cache=make_kv_cache(spec),
        limits=spec.limits,
        rank=rank,
        compiled_for=make_compiled_for(spec, vector_isa),
        programs=programs,
        kernels=kernels,
        products=products,
        weights_layout_sha256=layout.sha256,
        toolchain={"trtx": __version__, **toolchain},
    )
