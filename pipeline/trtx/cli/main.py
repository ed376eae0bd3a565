"""The command `trtx`: its verbs, its global flags, and how every error leaves the program.

A verb is a module with one function `command`; whatever is slow to import is imported inside it, so that
`trtx --help` stays instant.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer

from trtx import __version__
from trtx.cli import (
    apply,
    attach,
    cache_group,
    cancel,
    diff,
    doctor,
    init,
    lock,
    logs,
    migrate,
    plan,
    resolve,
    schema,
    serve,
    status,
    validate,
    why,
)
from trtx.console import make_console, silence_stdout
from trtx.errors import Interrupted, TrtxError, UsageProblem

GLOBAL_FLAGS = {"-v": "verbose", "--verbose": "verbose", "-q": "quiet", "--quiet": "quiet", "--no-color": "no_color"}

ERROR_SCHEMA = "trtx.error/v1"
# The base of every complaint about arguments, whichever click typer brings along.
WrongArguments: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="trtx",
    help="One YAML recipe into inference engines and deployment folders for a GPU fleet, reproducibly.",
    epilog="Start with: trtx init, trtx plan recipe.yaml, trtx apply recipe.yaml",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trtx {__version__}")
        raise typer.Exit


@app.callback()
def _global_flags(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show tracebacks of errors.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and warnings.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (also: NO_COLOR=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = make_console(os.environ, no_color=no_color, verbosity=1 if verbose else -1 if quiet else 0)


def _stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Ctrl-C leaves with the exit code of an interruption, whichever verb it stops."""

    @functools.wraps(command)
    def run_command(*args: Any, **kwargs: Any) -> Any:
        try:
            result = command(*args, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise Interrupted("stopped") from None
        except BrokenPipeError:  # `trtx … | head`: nobody reads on, and that is fine. click would leave with 1.
            silence_stdout()

    return run_command


for _name, _module in {
    "init": init,
    "validate": validate,
    "resolve": resolve,
    "lock": lock,
    "plan": plan,
    "apply": apply,
    "attach": attach,
    "status": status,
    "logs": logs,
    "cancel": cancel,
    "why": why,
    "diff": diff,
    "serve": serve,
    "migrate": migrate,
    "schema": schema,
    "doctor": doctor,
}.items():
    app.command(_name)(_stoppable(_module.command))
app.add_typer(cache_group.app, name="cache")


def hoist_global_flags(arguments: list[str]) -> list[str]:
    """Move -v, -q and --no-color before the verb, so that they may stand anywhere up to `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head, tail = arguments[:end], arguments[end:]
    flags = [word for word in head if word in GLOBAL_FLAGS]
    return flags + [word for word in head if word not in GLOBAL_FLAGS] + tail


def wants_json(arguments: list[str]) -> bool:
    """Whether `-o json` is among the arguments, in any spelling."""
    pairs = itertools.pairwise(arguments)
    return any(word in ("-ojson", "-o=json", "--output=json") for word in arguments) or any(
        option in ("-o", "--output") and value == "json" for option, value in pairs
    )


def main(arguments: list[str]) -> int:
    """Run trtx with the given arguments; returns the exit code and never raises."""
    arguments = hoist_global_flags(arguments)
    verbose = bool({"-v", "--verbose"} & set(arguments))
    console = make_console(os.environ, no_color="--no-color" in arguments)
    try:
        code = app(args=arguments, prog_name="trtx", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except WrongArguments as error:
        cast(Any, error).show()
        failure: TrtxError = UsageProblem(cast(Any, error).format_message())
    except TrtxError as error:
        if verbose:
            traceback.print_exception(error)
        console.error(error.render())
        failure = error
    except Exception as error:  # noqa: BLE001  The last resort: no user meets a traceback without asking for it.
        if verbose:
            traceback.print_exc()
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


def run() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # JSON, YAML and Markdown are UTF-8 whatever the locale. Bytes of file names that are not become \udcxx, which
        # JSON reads as what Python had.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
