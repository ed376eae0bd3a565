"""Compiles one program for a GPU, in a process of its own: `python -m trtx.backends.inductor.compile_cuda job.json`.

torch.export makes a graph of the module on the device, AOTInductor Triton kernels of what is between the operators of
the kernel library, and g++ the library that launches them, with the kernels' machine code inside.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch._inductor import aoti_compile_and_package, config
from torch.export import ExportedProgram, export

from trtx.backends.inductor.choices import Recorder
from trtx.backends.inductor.compile import EXAMPLE, make_inputs, write_compiler, write_package
from trtx.backends.inductor.kernel_configs import read_configs, write_configs
from trtx.backends.inductor.module import make_module
from trtx.backends.inductor.spec import CompileFacts, CompileJob, EngineSpec, make_kv_cache
from trtx.errors import EnvironmentProblem
from trtx.files import write_json
from trtx.kernels import ops
from trtx.processes import die_with_parent
from trtx.runtime.program import make_pools

DEVICE: Literal["cuda"] = "cuda"


def compile_program(job: CompileJob) -> CompileFacts:
    """Write the package of one program and return what the compiler says about it.

    Raises EnvironmentProblem where torch sees no GPU of the architecture.
    """
    check_device(job.spec.arch)
    work = Path(job.work)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job.work
    os.environ["TRITON_CACHE_DIR"] = str(work / "triton")
    write_configs(work, job.configs)
    ops.use_namespace(job.kernels)
    started = time.monotonic()
    exported = export_program(job.spec)
    print(f"exported in {time.monotonic() - started:.1f} s", flush=True)
    raw = work / f"{job.program}.raw.pt2"
    options = make_options(job.program, write_compiler(Path(job.compiler), work))
    recorder = Recorder(options)
    aoti_compile_and_package(exported, package_path=str(raw), inductor_configs=options)
    print(f"compiled in {time.monotonic() - started:.1f} s", flush=True)
    write_package(raw, Path(job.package), keep_names=True)
    module = make_module_of(job.spec)
    choices = recorder.read(job.spec.arch, read_configs(work))
    return CompileFacts(constants=tuple(sorted(module.state_dict())), choices=choices)


def check_device(arch: str) -> None:
    """Raise EnvironmentProblem unless torch's first GPU has this architecture."""
    if not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"a program for {arch} cannot be compiled here", why="torch sees no GPU", fix="run the step on a GPU node"
        )
    found = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if found != arch:
        raise EnvironmentProblem(f"a program for {arch} cannot be compiled here", why=f"this machine's GPU is {found}")


def make_module_of(spec: EngineSpec) -> Any:
    """The module of a spec on the meta device."""
    limit = spec.limits.max_seq_len
    return make_module(spec.model, spec.quantization, spec.dtype, spec.rank, limit, spec.attention, DEVICE)


def export_program(spec: EngineSpec) -> ExportedProgram:
    """The graph of the program, with every size that varies at run time left open; see compile.export_program."""
    module = make_module_of(spec).to_empty(device=DEVICE)
    pools = make_pools(make_kv_cache(spec), EXAMPLE["P"], DEVICE)
    inputs, sizes = make_inputs(spec, len(pools))
    module.forward = module.step
    with torch.no_grad():
        moved = [tensor.to(DEVICE) for tensor in inputs]
        return export(module, (*moved, *pools), dynamic_shapes=sizes, strict=False)


def make_options(program: str, compiler: Path) -> dict[str, Any]:
    """Options of inductor (torch._inductor.config), less those that this release of torch does not have."""
    options = {
        "aot_inductor.package_constants_in_so": False,
        # See compile.make_options.
        "always_keep_tensor_constants": True,
        "aot_inductor.model_name_for_generated_files": program,
        "aot_inductor.precompile_headers": False,
        "aot_inductor.enable_line_tables": False,
        # One library, without files of kernels beside it.
        "aot_inductor.embed_kernel_binary": True,
        # Tables and tokens come from the engine, which keeps them in range.
        "assert_indirect_indexing": False,
        "cpp.cxx": (None, str(compiler)),
    }
    return {name: value for name, value in options.items() if _has_option(name)}


def _has_option(name: str) -> bool:
    section, _, last = name.rpartition(".")
    return hasattr(getattr(config, section) if section else config, last)


def main(arguments: list[str]) -> int:
    """Compile the program of the job file named by the one argument."""
    die_with_parent(signal.SIGKILL)
    job = CompileJob.model_validate_json(Path(arguments[0]).read_bytes())
    facts = compile_program(job)
    write_json(Path(job.facts), facts.model_dump(mode="json"))
    shutil.rmtree(Path(job.work) / "triton", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
