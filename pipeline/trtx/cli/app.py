"""The verbs and global flags of `trtx` as typer has them."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from trtx import __version__
from trtx.console import make_console, silence_stdout
from trtx.errors import Interrupted

# In the order of `trtx --help`; each is the module of that name.
VERBS = (
    "init",
    "validate",
    "resolve",
    "lock",
    "plan",
    "apply",
    "attach",
    "status",
    "logs",
    "cancel",
    "why",
    "diff",
    "verify",
    "serve",
    "migrate",
    "schema",
    "probe",
    "doctor",
)
# Groups of verbs → the module with their stand-in.
GROUPS = {"cache": "cache_group"}

# The base of every complaint about arguments, whichever click typer brings along.
WrongArguments: type[Exception] = typer.BadParameter.__mro__[1]


def make_app(names: Iterable[str] = (*VERBS, *GROUPS)) -> typer.Typer:
    """The program with the verbs and groups of these names; only their modules are imported."""
    app = typer.Typer(
        name="trtx",
        help="One YAML recipe into inference engines and deployment folders for a GPU fleet, reproducibly.",
        epilog="Start with: trtx init, trtx plan recipe.yaml, trtx apply recipe.yaml",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_set_console)
    for name in names:
        module = importlib.import_module(f"trtx.cli.{GROUPS.get(name, name)}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(_stoppable(module.command))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trtx {__version__}")
        raise typer.Exit


def _set_console(
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
