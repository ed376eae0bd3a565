"""Builds an engine: its program, compiled, and the card that says what it is. Imports no torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from trtx.backends.inductor.choices import CHOICES_NAME, Choices
from trtx.backends.inductor.process import Child, run_children
from trtx.backends.inductor.spec import CompileFacts, CompileJob, EngineSpec, ProgramName, make_card
from trtx.errors import EnvironmentProblem, StepFailed, UsageProblem
from trtx.files import sha256_file, write_json
from trtx.models.layout import make_layout
from trtx.processes import ask_or_why
from trtx.runtime.card import CARD_NAME, EngineCard, Program
from trtx.runtime.fit import check_machine

PROGRAMS: tuple[ProgramName, ...] = ("step",)


def build(spec: EngineSpec, output: Path, work: Path, say: Callable[[str], None]) -> EngineCard:
    """Write engine.json, compile.json and programs/ into `output`; `work` is scratch space.

    Raises UsageProblem for a target or parallelism that cannot be built, EnvironmentProblem when this machine has no
    compiler or cannot run the result, StepFailed when compiling fails.
    """
    if spec.rank.tensor * spec.rank.pipeline > 1:
        raise UsageProblem(
            "the inductor backend runs one rank",
            why=f"the recipe asks for tensor {spec.rank.tensor} × pipeline {spec.rank.pipeline}",
            fix="set both to 1",
        )
    compiler = find_compiler()
    toolchain = {"torch": version("torch"), "g++": compiler_version(compiler)}
    # Every engine is loaded and asked before it counts, so the building machine must be able to run it.
    check_machine(make_card(spec, {}, toolchain, ""))
    facts = compile_programs(spec, compiler, output / "programs", work, say)
    check_constants(spec, facts)
    programs: dict[ProgramName, Program] = {
        name: Program(
            path=f"programs/{name}.pt2",
            sha256=sha256_file(output / "programs" / f"{name}.pt2"),
            constants=facts[name].constants,
        )
        for name in PROGRAMS
    }
    choices = Choices(programs={name: facts[name].choices for name in PROGRAMS})
    write_json(output / CHOICES_NAME, choices.model_dump(mode="json", by_alias=True))
    card = make_card(spec, programs, toolchain, facts["step"].choices.vector_isa)
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


def compile_programs(
    spec: EngineSpec, compiler: Path, packages: Path, work: Path, say: Callable[[str], None]
) -> dict[str, CompileFacts]:
    """Compile the programs, each in a process of its own, into `packages`; what the compiler says, by program.

    Raises StepFailed with the last lines of the one that failed.
    """
    packages.mkdir(parents=True, exist_ok=True)
    jobs = [_make_job(spec, program, compiler, packages, work) for program in PROGRAMS]
    started = time.monotonic()
    children = [_make_child(job) for job in jobs]
    ended = run_children(children, work)
    for job, child, end in zip(jobs, children, ended, strict=True):
        if end.code > 0:
            say(child.log.read_text(errors="replace"))
            raise StepFailed(
                f"compiling the {job.program} program failed",
                why=end.tail[-1] if end.tail else f"exit code {end.code}",
                fix="the compiler's output is in the log of this step",
            )
    if killed := [job.program for job, end in zip(jobs, ended, strict=True) if end.code < 0]:
        raise StepFailed(
            f"compiling the {killed[0]} program was killed", why="most often memory ran out", fix="use a larger machine"
        )
    say(f"compiled {' and '.join(PROGRAMS)} in {time.monotonic() - started:.1f} s")
    return {job.program: CompileFacts.model_validate_json(Path(job.facts).read_bytes()) for job in jobs}


def _make_job(spec: EngineSpec, program: ProgramName, compiler: Path, packages: Path, work: Path) -> CompileJob:
    scratch = work / program
    scratch.mkdir(parents=True)
    return CompileJob(
        spec=spec,
        program=program,
        compiler=str(compiler),
        work=str(scratch),
        package=str(packages / f"{program}.pt2"),
        facts=str(scratch / "facts.json"),
    )


def _make_child(job: CompileJob) -> Child:
    scratch = Path(job.work)
    path = scratch / "job.json"
    write_json(path, job.model_dump(mode="json"))
    return Child("trtx.backends.inductor.compile", (str(path),), scratch / "compile.log", {"TMPDIR": str(scratch)})
