"""Options that several verbs share, worded once."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from trtx.recipe.overrides import NO_OVERRIDES, Overrides


class OutputFormat(StrEnum):
    """`table` is for people and goes to stderr; `json` goes to stdout, alone."""

    TABLE = "table"
    JSON = "json"


class TextFormat(StrEnum):
    """Who reads the text."""

    TEXT = "text"
    GITHUB = "github"


class StageName(StrEnum):
    """Stages a plan can end with."""

    DOWNLOAD = "download"
    DATASET = "dataset"
    CALIBRATE = "calibrate"
    CONVERT = "convert"
    BUILD = "build"
    BENCHMARK = "benchmark"
    PACKAGE = "package"


RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="Recipe file; recipe.yaml:h100/fp8 or recipe.yaml:'*/fp8' selects cells."),
]
OutputOption = Annotated[OutputFormat, typer.Option("-o", "--output", help="How to print the result.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="PATH=VALUE", help="Change a setting, as --set engine.limits.max_batch_size=4."),
]
UnsetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--unset", metavar="PATH", help="Remove a setting, so that its default applies."),
]
JunitOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--junit", metavar="FILE", help="Write the outcome of every step as JUnit XML."),
]
FormatOption = Annotated[
    TextFormat,
    typer.Option(
        "--format", help="github: a Markdown summary on stdout and in $GITHUB_STEP_SUMMARY, problems as ::error."
    ),
]
UntilOption = Annotated[Optional[StageName], typer.Option("--until", help="Stop after this stage.")]  # noqa: UP045
OfflineOption = Annotated[bool, typer.Option("--offline", help="Consult nothing but the lock and the cache.")]
LockedOption = Annotated[
    bool, typer.Option("--locked", help="Refuse (exit 7) when the lock is missing or would change.")
]
ParallelOption = Annotated[
    Optional[int], typer.Option("--max-parallel", min=1, help="Steps at once (default 2).")  # noqa: UP045
]
RunnerOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--runner", metavar="NAME", help="Run all cells there: local, sim, or a runner of recipe or site."),
]
RunOption = Annotated[Optional[str], typer.Option("--run", help="Id of a run; the latest when left out.")]  # noqa: UP045
FolderOption = Annotated[Path, typer.Option("--out-dir", help="Where packages are put.")]


def spell(argument: str, overrides: Overrides = NO_OVERRIDES) -> str:
    """A recipe with its overrides as it is typed into a shell, for the next command that is shown."""
    words = [argument]
    for setting in overrides.set:
        words += ["--set", setting]
    for removal in overrides.unset:
        words += ["--unset", removal]
    return shlex.join(words)


def make_overrides(settings: list[str] | None, removals: list[str] | None) -> Overrides:
    """The values of --set and --unset."""
    return Overrides(tuple(settings or ()), tuple(removals or ()))
