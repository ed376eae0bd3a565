"""The command `trtx`: how it starts, which verbs it loads, and how every error leaves the program.

A verb is a module with one function `command`; whatever is slow to import is imported inside it, so that
`trtx --help` stays instant.
"""

from __future__ import annotations

import gc
import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, cast

from trtx.console import make_console, silence_stdout
from trtx.errors import TrtxError, UsageProblem

GLOBAL_FLAGS = {"-v": "verbose", "--verbose": "verbose", "-q": "quiet", "--quiet": "quiet", "--no-color": "no_color"}

ERROR_SCHEMA = "trtx.error/v1"
# Objects that may be made before cycles among them are looked for. What a verb imports is some 60,000 objects that
# stay; going through them again and again, as with Python's own 700, is a tenth of the time of a short command.
GC_THRESHOLD = 200_000


def hoist_global_flags(arguments: list[str]) -> list[str]:
    """Move -v, -q and --no-color before the verb, so that they may stand anywhere up to `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head, tail = arguments[:end], arguments[end:]
    flags = [word for word in head if word in GLOBAL_FLAGS]
    return flags + [word for word in head if word not in GLOBAL_FLAGS] + tail


def choose_verbs(arguments: Sequence[str]) -> tuple[str, ...]:
    """The verbs to import: the one that is called, all of them for help and for a word that is no verb."""
    from trtx.cli.app import GROUPS, VERBS

    known = (*VERBS, *GROUPS)
    first = next((word for word in arguments if word not in GLOBAL_FLAGS), None)
    return (first,) if first in known else known


def wants_json(arguments: list[str]) -> bool:
    """Whether `-o json` is among the arguments, in any spelling."""
    pairs = itertools.pairwise(arguments)
    return any(word in ("-ojson", "-o=json", "--output=json") for word in arguments) or any(
        option in ("-o", "--output") and value == "json" for option, value in pairs
    )


def main(arguments: list[str]) -> int:
    """Run trtx with the given arguments; returns the exit code and never raises."""
    from trtx.cli.app import WrongArguments, make_app

    arguments = hoist_global_flags(arguments)
    verbose = bool({"-v", "--verbose"} & set(arguments))
    console = make_console(os.environ, no_color="--no-color" in arguments)
    try:
        app = make_app(choose_verbs(arguments))
        code = app(args=arguments, prog_name="trtx", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except WrongArguments as error:
        cast(Any, error).show()
        failure: TrtxError = UsageProblem(cast(Any, error).format_message())
    except TrtxError as error:
        if verbose:
            _print_traceback(error)
        console.error(error.render())
        failure = error
    except Exception as error:  # noqa: BLE001  The last resort: no user meets a traceback without asking for it.
        if verbose:
            _print_traceback(error)
        failure = TrtxError(
            f"{type(error).__name__}: {error}",
            why="this was not foreseen",
            fix="run again with -v for the traceback, and please report it",
        )
        console.error(failure.render())
    if wants_json(arguments):
        try:
            console.json(failure.document or {"schema": ERROR_SCHEMA, "error": failure.to_json()})
        except OSError:  # stdout is what failed, or nobody reads it; the message is on stderr.
            silence_stdout()
    return failure.exit_code


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)


def run() -> None:
    """Entry point of the console script."""
    gc.set_threshold(GC_THRESHOLD)
    # What a recipe means must not depend on plugins that happen to be installed, and looking for them reads the
    # metadata of every distribution.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # JSON, YAML and Markdown are UTF-8 whatever the locale. Bytes of file names that are not become \udcxx, which
        # JSON reads as what Python had.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    code = main(sys.argv[1:])
    gc.freeze()  # The memory goes back as a whole: at exit nobody need look for cycles in it.
    sys.exit(code)
