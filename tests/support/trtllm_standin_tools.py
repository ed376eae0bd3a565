"""What the stand-ins of TensorRT-LLM's programs do: read the command line, check what they are given, write files.

Settings, by `StandIns.behave`: `die` prints its text and ends the next program with status 1; `without` are options,
separated by blanks, that the installation does not have though the table does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from support.trtllm_standins import Wrong, read_settings

from trtx.backends.tensorrt_llm.parser import Parsed, parse
from trtx.backends.tensorrt_llm.releases import Release
from trtx.errors import UsageProblem


def main(tool: str, release: str, folder: str, arguments: list[str]) -> int:
    settings, tables = read_settings(Path(folder)), Release.load(release)
    gone = settings.get("without", "").split()
    if "--help" in arguments:
        print_help(tables, tool, arguments, gone)
        return 0
    print(f"This is a stand-in for {tool} of TensorRT-LLM {release}: it computes nothing.")
    if "die" in settings:
        print(settings["die"])
        return 1
    try:
        if wrong := [word for word in arguments if word.partition("=")[0] in gone]:
            raise Wrong(f"error: unrecognized arguments: {' '.join(wrong)}")
        run(tool, tables, parse(tables, tool, arguments))
    except UsageProblem as problem:
        print(problem.render(), file=sys.stderr)
        return 2
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        return 1
    return 0


def run(tool: str, release: Release, parsed: Parsed) -> None:
    """Only what a tool needs is imported: some of it takes longer than all the rest."""
    values: dict[str, Any] = parsed.values
    if tool == "trtllm-build":
        from support.trtllm_standin_build import run_build

        run_build(release, values)
    elif tool == "trtllm-bench":
        from support.trtllm_standin_bench import run_bench

        run_bench(release, values)
    elif tool == "trtllm-serve":
        from support.trtllm_standin_serve import run_serve

        run_serve(release, values)
    else:
        from support.trtllm_standin_checkpoint import run_convert, run_quantize

        (run_quantize if tool == "quantize.py" else run_convert)(values)


def print_help(release: Release, tool: str, arguments: list[str], gone: list[str]) -> None:
    """The options of a tool, or of the subcommand that is asked about."""
    known = [f"{tool} {word}" for word in arguments if f"{tool} {word}" in release.tools]
    for option in release.tools[known[0] if known else tool].options:
        flags = [flag for flag in (*option.flags, *option.off_flags) if flag not in gone]
        if flags:
            print(f"  {', '.join(flags)}")
