"""Builds an engine: its program and its kernels, compiled, and the card that says what it is. Imports no torch."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from trtx.backends.inductor.choices import CHOICES_NAME, Choices
from trtx.backends.inductor.kernel_configs import describe_replay
from trtx.backends.inductor.process import Child, run_children
from trtx.backends.inductor.replay import KernelConfigs, Replay
from trtx.backends.inductor.spec import (
    CompileFacts,
    CompileJob,
    EngineSpec,
    ProgramName,
    TuneJob,
    find_isa,
    make_card,
)
from trtx.errors import EnvironmentProblem, StepFailed, UsageProblem
from trtx.files import read_json, sha256_file, write_json
from trtx.kernels import build_cuda
from trtx.kernels.build import LibraryJob, make_namespace
from trtx.models.layout import make_layout
from trtx.paths import kernels_dir
from trtx.processes import ask_or_why
from trtx.runtime.card import CARD_NAME, EngineCard, Kernels, Program
from trtx.runtime.fit import check_machine

PROGRAMS: tuple[ProgramName, ...] = ("step",)
# Of an engine's folder; what is in it is machine code.
CODE_FOLDER = "programs"
LIBRARY_NAME = "kernels.so"
# Which algorithm computes which product, of GPUs, and how fast.
PRODUCTS_NAME = "products.json"
# Of a build that repeats no other.
NOTHING = Replay()


def build(
    spec: EngineSpec, output: Path, work: Path, say: Callable[[str], None], replay: Replay = NOTHING
) -> EngineCard:
    """Write engine.json, compile.json and programs/ into `output`; `work` is scratch space.

    What an earlier build measured is not measured again where `replay` has it.

    Raises UsageProblem for a target or parallelism that cannot be built, EnvironmentProblem when this machine has no
    compiler or cannot run the result, StepFailed when compiling fails.
    """
    if spec.rank.pipeline > 1:
        raise UsageProblem(
            "the inductor backend runs no pipelines",
            why=f"the recipe asks for pipeline {spec.rank.pipeline}",
            fix="set pipeline to 1; tensor parallelism spreads a model as well",
        )
    if spec.rank.rank:
        raise UsageProblem(
            f"no engine is built for rank {spec.rank.rank} alone",
            why="one program serves all ranks",
            fix="build rank 0",
        )
    compiler = find_compiler()
    toolchain = {"torch": version("torch"), "g++": compiler_version(compiler)}
    if spec.device == "cuda":
        toolchain["nvcc"] = nvcc_version()
    # Every engine is loaded and asked before it counts, so the building machine must be able to run it.
    check_machine(make_card(spec, {}, toolchain, ""))
    facts = compile_code(spec, compiler, output, work, say, replay)
    check_constants(spec, facts)
    programs: dict[ProgramName, Program] = {
        name: Program(
            path=f"{CODE_FOLDER}/{name}.pt2",
            sha256=sha256_file(output / CODE_FOLDER / f"{name}.pt2"),
            constants=facts[name].constants,
        )
        for name in PROGRAMS
    }
    kernels = Kernels(
        path=f"{CODE_FOLDER}/{LIBRARY_NAME}",
        sha256=sha256_file(output / CODE_FOLDER / LIBRARY_NAME),
        namespace=find_namespace(spec, compiler),
    )
    choices = Choices(programs={name: facts[name].choices for name in PROGRAMS})
    write_json(output / CHOICES_NAME, choices.model_dump(mode="json", by_alias=True))
    products = tune_products(spec, kernels, output, work, say, replay.products) if spec.device == "cuda" else ()
    card = make_card(spec, programs, toolchain, facts["step"].choices.vector_isa, kernels, products)
    write_json(output / CARD_NAME, card.model_dump(mode="json", by_alias=True))
    return card


def check_constants(spec: EngineSpec, facts: Mapping[str, CompileFacts]) -> None:
    """Every weight must come from outside, in every program: one that is missing was compiled in.

    Raises StepFailed.
    """
    rank = spec.rank
    layout = make_layout(spec.model, spec.quantization, spec.dtype, rank.tensor, rank.pipeline, rank.rank)
    expected = {tensor.name for tensor in layout.tensors}
    for program, found in facts.items():
        if wrong := sorted(expected ^ set(found.constants)):
            raise StepFailed(
                f"the compiled {program} program does not take its weights from outside",
                why=f"{wrong[0]} is {'compiled in' if wrong[0] in expected else 'not a weight'}",
                fix="report this with your versions of trtx and torch",
            )


def find_compiler() -> Path:
    """The C++ compiler, g++ of the PATH: the one whose version is in the step's key.

    Raises EnvironmentProblem when there is none.
    """
    found = shutil.which("g++")
    if found is None:
        raise EnvironmentProblem(
            "there is no C++ compiler on this machine",
            why="programs are compiled to machine code by g++ when an engine is built; running one needs no compiler",
            fix="install it (Debian and Ubuntu: apt-get install g++)",
        )
    return Path(found)


def compiler_version(compiler: Path) -> str:
    """Version of a compiler as it says itself, such as `12.2.0`. Raises EnvironmentProblem when it cannot be run."""
    answer, why = ask_or_why([str(compiler), "-dumpfullversion"], timeout_s=60)
    if answer is None:
        raise EnvironmentProblem(f"the C++ compiler {compiler} does not work", why=why, fix="install g++ again")
    return answer.strip()


def nvcc_version() -> str:
    """Version of CUDA's compiler as it says itself, such as `13.0.88`. Raises EnvironmentProblem without one."""
    nvcc = build_cuda.find_nvcc()
    answer, why = ask_or_why([str(nvcc), "--version"], timeout_s=60)
    match = re.search(r"V(\d+\.\d+\.\d+)", answer or "")
    if match is None:
        raise EnvironmentProblem(f"the CUDA compiler {nvcc} does not work", why=why or "it names no version")
    return match[1]


def tune_products(
    spec: EngineSpec,
    kernels: Kernels,
    output: Path,
    work: Path,
    say: Callable[[str], None],
    given: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Have the products of the model measured on this machine's GPU; the records of the fastest algorithms.

    Those that are `given` and that the library accepts are taken as they are. What was measured goes to products.json.
    Raises StepFailed.
    """
    scratch = work / "tune"
    scratch.mkdir(parents=True)
    job = TuneJob(
        spec=spec,
        namespace=kernels.namespace,
        library=str(output / kernels.path),
        records=str(output / PRODUCTS_NAME),
        given=given,
    )
    write_json(scratch / "job.json", job.model_dump(mode="json"))
    log = scratch / "tune.log"
    child = Child("trtx.backends.inductor.tune", (str(scratch / "job.json"),), log, {"TMPDIR": str(scratch)})
    started = time.monotonic()
    end = run_children([child], work)[0]
    if end.code != 0:
        say(log.read_text(errors="replace"))
        raise StepFailed("measuring the products failed", why=end.tail[-1] if end.tail else f"exit code {end.code}")
    found = read_json(output / PRODUCTS_NAME)
    replayed = sum(one["time_us"] is None for one in found)
    said = [f"replayed {replayed} records"] if given else []
    if replayed < len(found):
        said.append(f"measured {len(found) - replayed} products")
    say(f"{', '.join(said)} in {time.monotonic() - started:.1f} s")
    return tuple(one["record"] for one in found)


def find_namespace(spec: EngineSpec, compiler: Path) -> str:
    """Where the operators of this engine's kernels are."""
    if spec.device == "cuda":
        return build_cuda.make_namespace(spec.arch, f"g++ {compiler_version(compiler)} nvcc {nvcc_version()}")
    return make_namespace(find_isa(spec.arch).march, compiler_version(compiler))


def compile_code(
    spec: EngineSpec,
    compiler: Path,
    output: Path,
    work: Path,
    say: Callable[[str], None],
    replay: Replay = NOTHING,
) -> dict[str, CompileFacts]:
    """Compile programs and kernels, each in a process of its own; what the compiler says of the programs, by name.

    Raises StepFailed with the last lines of the one that failed.
    """
    folder = output / CODE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, KernelConfigs] = {program: replay.configs.get(program, {}) for program in PROGRAMS}
    jobs = {
        f"{program} program": _make_job(spec, program, compiler, folder, work, given[program]) for program in PROGRAMS
    }
    children = {name: _make_child(job) for name, job in jobs.items()}
    children["kernels"] = _make_kernels_child(spec, compiler, folder, work)
    started = time.monotonic()
    ended = dict(zip(children, run_children(list(children.values()), work), strict=True))
    for name, end in ended.items():
        if end.code > 0:
            say(children[name].log.read_text(errors="replace"))
            raise StepFailed(
                f"compiling the {name} failed",
                why=end.tail[-1] if end.tail else f"exit code {end.code}",
                fix="the compiler's output is in the log of this step",
            )
    if killed := [name for name, end in ended.items() if end.code < 0]:
        raise StepFailed(
            f"compiling the {killed[0]} was killed", why="most often memory ran out", fix="use a larger machine"
        )
    say(f"compiled {', '.join(children)} in {time.monotonic() - started:.1f} s")
    facts: dict[str, CompileFacts] = {
        job.program: CompileFacts.model_validate_json(Path(job.facts).read_bytes()) for job in jobs.values()
    }
    for program, found in facts.items():
        if text := describe_replay(given[program], found.choices.configs):
            say(f"{program} program: {text}")
    return facts


def _make_job(
    spec: EngineSpec, program: ProgramName, compiler: Path, folder: Path, work: Path, configs: KernelConfigs
) -> CompileJob:
    scratch = work / program
    scratch.mkdir(parents=True)
    return CompileJob(
        spec=spec,
        program=program,
        kernels=find_namespace(spec, compiler),
        compiler=str(compiler),
        work=str(scratch),
        package=str(folder / f"{program}.pt2"),
        facts=str(scratch / "facts.json"),
        configs=configs,
    )


def _make_child(job: CompileJob) -> Child:
    scratch = Path(job.work)
    path = scratch / "job.json"
    write_json(path, job.model_dump(mode="json"))
    module = "compile_cuda" if job.spec.device == "cuda" else "compile"
    # Line numbers of Triton kernels name the folder that they were compiled in, and it is another one in every build.
    environ = {"TMPDIR": str(scratch), "TRITON_DISABLE_LINE_INFO": "1"}
    return Child(f"trtx.backends.inductor.{module}", (str(path),), scratch / "compile.log", environ)


def _make_kernels_child(spec: EngineSpec, compiler: Path, folder: Path, work: Path) -> Child:
    scratch = work / "kernels"
    scratch.mkdir(parents=True)
    # The program takes longer, and has a core of its own.
    spare = max(1, len(os.sched_getaffinity(0)) - 1)
    job = LibraryJob(
        march=spec.arch if spec.device == "cuda" else find_isa(spec.arch).march,
        namespace=find_namespace(spec, compiler),
        compiler=str(compiler),
        work=str(scratch),
        library=str(folder / LIBRARY_NAME),
        shelf=str(kernels_dir(os.environ)),
        processes=min(spare, 6),
    )
    path = scratch / "job.json"
    write_json(path, job.model_dump(mode="json"))
    module = "build_cuda" if spec.device == "cuda" else "build"
    return Child(f"trtx.kernels.{module}", (str(path),), scratch / "build.log", {"TMPDIR": str(scratch)})
