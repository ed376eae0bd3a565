"""Shell commands of a Markdown document: found, checked against what exists, and run.

A fenced block of `sh`, `bash`, `shell` or `console` holds commands. A comment right before it says what a test does:

    <!-- test: run -->           run it; with the blocks before it in the same document, in one folder, in order
    <!-- test: serve -->         start it, wait until /health answers, and leave it running for the blocks that follow
    <!-- test: skip: reason -->  only look
    (nothing)                    check that its programs, verbs, flags, make targets and paths exist
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
from typer.core import TyperGroup

from trtx.cli.app import make_app
from trtx.cli.main import GLOBAL_FLAGS

LANGUAGES = ("sh", "bash", "shell", "console")
MARKER = re.compile(r"<!--\s*test:\s*(?P<kind>run|serve|skip)(?::\s*(?P<reason>.+?))?\s*-->")
FENCE = re.compile(r"^(?P<indent> {0,3})```(?P<language>\w*)\s*$")
# `<<'EOF'` and the text up to its end, which is for the program and no command.
HERE_DOCUMENT = re.compile(r"(?P<start>[^\n]*)<<-?\s*(['\"]?)(?P<end>\w+)\2[^\n]*\n.*?\n\s*(?P=end)\n", re.DOTALL)
# Programs a reader has or not; a test machine need not.
FOREIGN = frozenset({"docker", "podman", "sbatch", "squeue", "ssh"})
BUILTINS = frozenset({"cd", "export", "source", ".", "set", "unset", "echo", "exit"})


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is the number of its first command."""

    document: str
    line: int
    kind: str
    reason: str
    text: str

    @property
    def script(self) -> str:
        """What to give to bash: the commands without prompts and, in a console block, without their output."""
        lines = self.text.splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return "\n".join(lines) + "\n"

    def commands(self) -> Iterator[list[str]]:
        """Every simple command as words; variables that are set before it and redirections are left out."""
        joined = re.sub(r"\\\n\s*", " ", HERE_DOCUMENT.sub(r"\g<start>\n", self.script))
        for line in joined.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
            lexer.whitespace_split = True
            yield from _simple_commands(list(lexer))


def _simple_commands(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    skip_next = False
    for word in [*words, ";"]:
        if word and set(word) <= set("<>&") and set(word) & set("<>"):
            skip_next = True
        elif word and set(word) <= set("();|&"):
            if command:
                yield command
            command = []
        elif skip_next:
            skip_next = False
        elif command or not re.fullmatch(r"[A-Za-z_]\w*=.*", word):
            command.append(word)


def find_blocks(document: str, text: str) -> list[Block]:
    """The shell blocks of a document, in order. Raises ValueError for a marker that belongs to no block."""
    found: list[Block] = []
    marker: re.Match[str] | None = None
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        fence = FENCE.match(line)
        if fence is None:
            if line.strip():
                if marker is not None:
                    raise ValueError(f"{document}:{number}: a test marker must stand right before a shell block")
                marker = MARKER.search(line)
            continue
        body = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            body.append(inner.removeprefix(fence["indent"]))
        if fence["language"] in LANGUAGES:
            kind, reason = (marker["kind"], marker["reason"] or "") if marker else ("look", "")
            found.append(Block(document, number + 1, kind, reason, "\n".join(body)))
        elif marker is not None:
            raise ValueError(f"{document}:{number}: a test marker stands before a block that is not of a shell")
        marker = None
    return found


def problems(block: Block, root: Path) -> list[str]:
    """What a reader who types the block would stumble over."""
    return [
        f"{block.document}:{block.line}: {shlex.join(command)}: {problem}"
        for command in block.commands()
        for problem in _problems_of(command, root)
    ]


def _problems_of(command: list[str], root: Path) -> Iterator[str]:
    program, arguments = command[0], command[1:]
    name = Path(program).name
    if name == "trtx":
        yield from _trtx_problems(arguments)
    elif name == "make":
        yield from _make_problems(arguments, root)
    elif not _exists(program, name, root):
        yield "there is no such program"
    for word in arguments:
        path = word.partition(":")[0]
        if _is_of_tree(path, root) and not (root / path).exists():
            yield f"there is no {path}"


def _trtx_problems(arguments: list[str]) -> Iterator[str]:
    group: Any = typer.main.get_command(make_app())
    words = [word for word in arguments if word not in GLOBAL_FLAGS]
    if not words or words[0] in ("--help", "-h", "--version"):
        return
    verb, rest = "trtx", words
    while isinstance(group, TyperGroup):  # trtx, and groups of verbs such as `trtx cache`.
        inner = group.get_command(typer.Context(group), rest[0]) if rest else None
        if inner is None:
            yield f"{verb} has no verb {' '.join(rest[:1])}"
            return
        group, verb, rest = inner, f"{verb} {rest[0]}", rest[1:]
    known = {flag for parameter in group.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        flag = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]", flag) and flag not in known | {"--help", "-h"}:
            yield f"{verb} has no option {flag}"


def _make_problems(arguments: list[str], root: Path) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    for word in arguments:
        if not word.startswith("-") and "=" not in word and word not in targets:
            yield f"the Makefile has no target {word}"


def _exists(program: str, name: str, root: Path) -> bool:
    if program.startswith(".venv/bin/"):
        return Path(sys.prefix, "bin", name).exists()
    if "/" in program:
        return (root / program).exists()
    return name in FOREIGN | BUILTINS or shutil.which(name) is not None


def _is_of_tree(word: str, root: Path) -> bool:
    """Whether a word names something below a folder of the source tree."""
    head, separator, _ = word.partition("/")
    return (
        bool(separator)
        and not word.endswith("/")
        and head
        in {
            path.name
            for path in root.iterdir()
            if path.is_dir() and not path.name.startswith(".") and path.name != "out"
        }
    )
