"""Runs one tool of a release: its lines go to the step's log, a failure says why as far as that is known."""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from trtx.backends.tensorrt_llm.causes import find_cause
from trtx.backends.tensorrt_llm.commands import Command
from trtx.errors import StepFailed
from trtx.processes import ask, stream_process

# Lines of a log that a failure shows, and those in which a cause is looked for.
SHOWN, KEPT = 8, 400
HELP_TIMEOUT_S = 300.0

Say = Callable[[str], None]


def settle_doubts(
    command: Command, program: tuple[str, ...], environment: Mapping[str, str], say: Say
) -> tuple[Command, tuple[str, ...]]:
    """Ask the tool's own --help about options that are not established; those that it may go without are left out.

    Returns the command and what is still in doubt. The tool is not started when nothing is.
    """
    if not command.doubts:
        return command, ()
    return apply_help(command, read_help(command, program, environment), say)


def read_help(command: Command, program: tuple[str, ...], environment: Mapping[str, str]) -> frozenset[str]:
    """Every word of a tool's --help; none when it does not answer. It takes as long as importing the library."""
    text = ask([*program, *command.tool.split(" ")[1:2], "--help"], timeout_s=HELP_TIMEOUT_S, environment=environment)
    return frozenset(re.split(r"[\s,\[\]=|/]+", text or "")) - {""}


def apply_help(command: Command, words: frozenset[str], say: Say) -> tuple[Command, tuple[str, ...]]:
    """A command without what the help does not have, and what is still in doubt."""
    if not words:
        return command, command.doubts
    doubted = [part for part in command.parts if part.doubt and part.flag not in words]
    gone = [part.flag for part in doubted if part.droppable]
    for flag in gone:
        say(f"{command.tool} of this installation has no {flag}: it is left out")
    return command.without(gone), tuple(part.doubt for part in doubted if part.doubt and not part.droppable)


def run_tool(
    command: Command, program: tuple[str, ...], *, folder: Path, environment: Mapping[str, str], say: Say
) -> list[str]:
    """Run a command to its end and return what it printed, line by line.

    Raises StepFailed when it fails, with its last lines and the cause where that is known.
    """
    argv = [*program, *command.words]
    say(f"$ {shlex.join(argv)}")
    tail: deque[str] = deque(maxlen=KEPT)

    def on_line(line: str) -> None:
        tail.append(line)
        say(line)

    status = stream_process(argv, folder=folder, environment=environment, on_line=on_line)
    if status != 0:
        raise _failure(command, status, list(tail))
    return list(tail)


def _failure(command: Command, status: int, lines: list[str]) -> StepFailed:
    cause = find_cause(lines, status)
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    last = [line for line in lines if line.strip()][-SHOWN:]
    shown = "\n       ".join(last) if last else "it printed nothing"
    return StepFailed(
        f"{command.tool} of TensorRT-LLM {command.release} failed ({ended})",
        why=f"{cause.why}\n       {shown}" if cause else shown,
        fix=cause.fix if cause else "the step's log has all that it printed",
    )
