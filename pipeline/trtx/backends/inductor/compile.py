"""Compiles one program, in a process of its own: `python -m trtx.backends.inductor.compile job.json`.

torch.export makes a graph of the module, AOTInductor C++ of the graph, g++ a library of that. The package holds the
library and nothing of the machine it was made on, so that the same job gives the same bytes anywhere: file names
are fixed, paths are mapped away, the number of threads is open, vector code is for the target and not for
the processor at hand, and C++ sources (which quote the compiler's command lines) are left out.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import aoti_compile_and_package, cpu_vec_isa
from torch.export import Dim, ExportedProgram, export

from trtx.backends.inductor.choices import Recorder
from trtx.backends.inductor.module import make_module
from trtx.backends.inductor.spec import (
    CompileFacts,
    CompileJob,
    EngineSpec,
    ProgramName,
    find_isa,
    make_kv_cache,
)
from trtx.files import write_json
from trtx.hardware.gpus import Isa
from trtx.kernels import ops
from trtx.models.attention import AttentionKind
from trtx.processes import die_with_parent
from trtx.runtime.program import PACKAGE_MODEL, make_pools

# Folder inside a package where the loader looks for the library.
CODE_FOLDER = f"data/aotinductor/{PACKAGE_MODEL}"

# Sizes that examples are made with. The compiler takes them as typical when it chooses which loops to run in parallel.
EXAMPLE = {"M": 64, "B": 4, "W": 8, "N": 16, "P": 40}

# Threads that the same choice assumes; how many run is decided when the program runs.
TYPICAL_THREADS = 8


def compile_program(job: CompileJob) -> CompileFacts:
    """Write the package of one program and return what the compiler says about it."""
    isa, work = find_isa(job.spec.arch), Path(job.work)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job.work
    use_vector_isa(isa)
    ops.use_namespace(job.kernels)
    exported = export_program(job.spec)
    raw = work / f"{job.program}.raw.pt2"
    options = make_options(isa, job.program, write_compiler(Path(job.compiler), work))
    recorder = Recorder(options)
    aoti_compile_and_package(exported, package_path=str(raw), inductor_configs=options)
    write_package(raw, Path(job.package))
    loader = torch._C._aoti.AOTIModelPackageLoader(str(raw), PACKAGE_MODEL, False, 1, -1)
    choices = recorder.read(loader.get_metadata()["AOTI_CPU_ISA"])
    return CompileFacts(constants=tuple(sorted(loader.get_constant_fqns())), choices=choices)


def export_program(spec: EngineSpec) -> ExportedProgram:
    """The graph of the program, with every size that varies at run time left open.

    The weights' memory is reserved and never touched, so it costs nothing.
    """
    limit = spec.limits.max_seq_len
    attention: AttentionKind = "gather" if spec.dtype == "float16" else spec.attention
    module = make_module(spec.model, spec.quantization, spec.dtype, spec.rank, limit, attention).to_empty(device="cpu")
    pools = make_pools(make_kv_cache(spec), EXAMPLE["P"])
    inputs, sizes = make_inputs(spec, len(pools))
    module.forward = module.step
    with torch.no_grad():
        return export(module, (*inputs, *pools), dynamic_shapes=sizes, strict=False)


def make_inputs(spec: EngineSpec, num_pools: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Example inputs of the program, without the pools, and the range of every size, pools included.

    Limits keep requests in range, not the compiled code; a range smaller than the example would be refused.
    """
    limits = spec.limits
    tokens, rows = _dim("M", limits.max_num_tokens), _dim("N", limits.max_num_tokens)
    batch, width = _dim("B", limits.max_batch_size), _dim("W", spec.max_blocks)
    sizes = {
        "tokens_M": {0: tokens},
        "positions_M": {0: tokens},
        "slots_M": {0: tokens},
        "block_tables_BW": {0: batch, 1: width},
        "query_starts_B1": {0: batch + 1},
        "context_lens_B": {0: batch},
        "select_N": {0: rows},
        "pools": tuple({0: _dim("P", 1 << 40)} for _ in range(num_pools)),
    }
    m, b, w, n = (EXAMPLE[key] for key in "MBWN")
    starts = torch.linspace(0, m, b + 1).to(torch.int32)
    return [_zeros(m), _zeros(m), _zeros(m), _zeros(b, w).int(), starts, _zeros(b).int(), _zeros(n)], sizes


def make_options(isa: Isa, program: ProgramName, compiler: Path) -> dict[str, Any]:
    """Options of inductor (torch._inductor.config)."""
    return {
        "aot_inductor.package_constants_in_so": False,
        # Without this, scalars and vectors of up to 8 numbers (scales!) would be compiled in with the values they have
        # while compiling, which are nobody's.
        "always_keep_tensor_constants": True,
        "aot_inductor.model_name_for_generated_files": program,
        # Precompiled headers pay only when a cache keeps them, and need the openssl program.
        "aot_inductor.precompile_headers": False,
        "aot_inductor.enable_line_tables": False,
        "cpp.cxx": (None, str(compiler)),
        "cpp.march": isa.march,
        "cpp.simdlen": isa.simdlen,
        "cpp.vec_isa_ok": True,
        "cpp.dynamic_threads": True,
        "cpp.threads": TYPICAL_THREADS,
        # One library per program leaves nothing to compile in parallel.
        "compile_threads": 1,
    }


def use_vector_isa(isa: Isa) -> None:
    """Let inductor choose from the target's vector ISA only.

    By itself it adds what the building machine has beyond it (VNNI, AMX), which the card would not ask for.
    """
    chosen = {256: cpu_vec_isa.VecAVX2, 512: cpu_vec_isa.VecAVX512}[isa.simdlen]
    cpu_vec_isa.supported_vec_isa_list[:] = [chosen()]


def write_compiler(real: Path, work: Path) -> Path:
    """A program that calls the real compiler and keeps this machine's paths out of what it makes."""
    site = Path(torch.__file__).parent.parent
    maps = [f"-ffile-prefix-map={path}=." for path in (site, work.resolve(), work)]
    flags = shlex.join([*maps, "-frandom-seed=trtx"])
    path = work / "g++"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(str(real))} {flags} "$@"\n')
    path.chmod(0o700)
    return path


def write_package(raw: Path, target: Path, *, keep_names: bool = False) -> None:
    """Copy a package without sources, in one order, with one date: the same library gives the same bytes.

    With `keep_names` the names of sources stay, by which torch 2.11 finds the library and its metadata.
    """
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
        root = target.stem
        for name in sorted(source.namelist()):
            inner = name.split("/", 1)[1]
            if inner.startswith(CODE_FOLDER) and not inner.endswith((".so", ".json")):
                if keep_names and inner.endswith(".wrapper.cpp"):
                    packed.writestr(zipfile.ZipInfo(f"{root}/{inner}"), b"")
                continue
            if inner != ".data/serialization_id":
                packed.writestr(zipfile.ZipInfo(f"{root}/{inner}"), source.read(name))


def main(arguments: list[str]) -> int:
    """Compile the program of the job file named by the one argument."""
    die_with_parent(signal.SIGKILL)
    job = CompileJob.model_validate_json(Path(arguments[0]).read_bytes())
    facts = compile_program(job)
    write_json(Path(job.facts), facts.model_dump(mode="json"))
    return 0


def _dim(name: str, largest: int) -> Dim:
    # A size whose only value is 1 would be taken for a constant.
    return Dim(name, min=1, max=max(largest, EXAMPLE[name]))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
