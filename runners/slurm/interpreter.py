"""Asks the interpreter of a site's jobs what it has, where jobs are submitted from, before any is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trtx.runners.slurm.commands import Answer, Shell
from trtx.runners.slurm.options import SlurmOptions

MODULE = "trtx.stages.toolchain"
# Printed when modules are loaded and setup lines have run, so that what fails after it is the interpreter.
READY = "trtx: the interpreter begins"


@dataclass(frozen=True)
class InterpreterFacts:
    """`versions` by name, empty when `problem` says why there are none; both empty when nothing could be learned."""

    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def ask_interpreter(
    shell: Shell, options: SlurmOptions, names: Sequence[str], exported: Sequence[str], *, timeout_s: float
) -> InterpreterFacts:
    """Start it as a job's script would, in the environment of jobs. `names` as in the toolchain of a step's factors.

    Nothing is learned of what is inside a container, nor where the setup of jobs fails outside of one.
    """
    if options.container.runtime != "none":
        return InterpreterFacts()
    answer = shell.call(interpreter_argv(options, names), timeout_s=timeout_s, exported=exported)
    return read_answer(options.python, answer)


def interpreter_argv(options: SlurmOptions, names: Sequence[str]) -> list[str]:
    """The beginning of a job's script, and the interpreter after it."""
    lines = [f"module load {shlex.quote(name)}" for name in options.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(options.environment.items())]
    lines += [
        *options.setup,
        f"echo {shlex.quote(READY)}",
        f"exec {shlex.join([options.python, '-m', MODULE, *names])}",
    ]
    return ["bash", *(["-l"] if options.modules else []), "-e", "-c", "\n".join(lines)]


def read_answer(python: str, answer: Answer) -> InterpreterFacts:
    """What it said, or what is wrong with it."""
    _, ready, said = answer.out.rpartition(f"{READY}\n")
    if answer.code is None or not ready:
        return InterpreterFacts()
    if answer.code in (126, 127):
        return InterpreterFacts(problem=f"there is no interpreter {python}")
    if answer.code != 0:
        if "No module named" in answer.err and "trtx" in answer.err:
            return InterpreterFacts(problem=f"{python} has no trtx, or another version of it")
        return InterpreterFacts(problem=f"{python} cannot run trtx: {answer.complaint}")
    try:
        return InterpreterFacts(versions=dict(json.loads(said)))
    except (ValueError, TypeError):
        return InterpreterFacts(problem=f"{python} answered {said.strip()[:100]!r}")
