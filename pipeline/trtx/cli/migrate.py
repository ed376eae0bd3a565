"""`trtx migrate`: recipes of an older version of the language, rewritten in the newest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console

if TYPE_CHECKING:
    from trtx.recipe.migrate import Migrated

SCHEMA = "trtx.migrate/v1"


def command(
    context: typer.Context,
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change, and change nothing.")] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Rewrite recipes in the newest version of the recipe language; comments and layout survive.

    A file is written only when the result is a valid recipe, and of several files all or none.
    """
    console: Console = context.obj
    migrated = _migrate_all(recipes)
    changed = [one for one in migrated if not one.is_current]
    if not diff:
        for one in changed:
            _write(one)
    if output is OutputFormat.JSON:
        console.json({"schema": SCHEMA, "written": not diff, "files": [_to_json(one) for one in migrated]})
        return
    for one in migrated:
        _show(console, one, diff)


def _migrate_all(recipes: list[Path]) -> list[Migrated]:
    """Raises RecipeInvalid with the problems of all files."""
    from trtx.recipe.load import read_text
    from trtx.recipe.migrate import migrate_text
    from trtx.recipe.problems import Problem, RecipeInvalid

    found: list[Migrated] = []
    problems: list[Problem] = []
    for path in dict.fromkeys(recipes):
        try:
            found.append(migrate_text(path, read_text(path)))
        except RecipeInvalid as error:
            problems += error.problems
    if problems:
        raise RecipeInvalid(problems)
    return found


def _write(migrated: Migrated) -> None:
    """Replace the file whole, keeping its mode and its byte order mark; a link keeps leading to it."""
    from trtx.files import disk_errors, write_bytes

    target = migrated.path.resolve()
    with disk_errors(target):
        mode = target.stat().st_mode & 0o7777
        has_bom = target.read_bytes().startswith(b"\xef\xbb\xbf")
        write_bytes(target, migrated.after.encode("utf-8-sig" if has_bom else "utf-8"))
        target.chmod(mode)


def _show(console: Console, migrated: Migrated, is_dry: bool) -> None:
    from trtx.recipe.schema import SCHEMA as NEWEST

    if migrated.is_current:
        console.say(f"{migrated.path} is {NEWEST} already")
        return
    done = "would be migrated" if is_dry else "migrated"
    console.say(f"{migrated.path} {done} from {migrated.version} to {NEWEST}:")
    for change in migrated.changes:
        console.say(f"  {change}")
    if is_dry:
        console.say(migrated.diff().rstrip("\n"))


def _to_json(migrated: Migrated) -> dict[str, object]:
    from trtx.recipe.schema import SCHEMA as NEWEST

    return {
        "file": str(migrated.path),
        "from": migrated.version,
        "to": NEWEST,
        "changed": not migrated.is_current,
        "changes": list(migrated.changes),
        "diff": migrated.diff(),
    }
