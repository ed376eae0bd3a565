"""`trtx init`: a commented recipe to start from, and its schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console

SCHEMA = "trtx.init/v1"
SCHEMA_NAME = "recipe.schema.json"


def command(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="Recipe to write, or the folder for it.")] = Path(
        "recipe.yaml"
    ),
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Name of the recipe; the folder's name when left out."),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write a recipe that builds the demo model on this machine, with every choice explained.

    Beside it goes recipe.schema.json, from which editors complete and check the recipe. No file of yours is replaced.
    """
    from trtx.errors import UsageProblem
    from trtx.files import write_text
    from trtx.render import render

    console: Console = context.obj
    if path.is_dir():
        path = path / "recipe.yaml"
    if path.exists():
        raise UsageProblem(f"{path} already exists", fix="give another path, or remove it first")
    if path.suffix not in (".yaml", ".yml"):
        raise UsageProblem(f"{path} does not end in .yaml", fix=f"write {path}.yaml")
    chosen = _check_name(name) if name is not None else _make_name(path)
    schema_path = path.with_name(SCHEMA_NAME)
    _write_schema(schema_path)
    write_text(path, render("recipe/recipe.yaml.j2", name=chosen, schema=SCHEMA_NAME))
    if output is OutputFormat.JSON:
        console.json({"schema": SCHEMA, "name": chosen, "recipe": str(path), "json_schema": str(schema_path)})
        return
    console.say(f"wrote {path} and {schema_path}")
    console.say(f"next: trtx plan {path}")


def _check_name(name: str) -> str:
    import re

    from trtx.errors import UsageProblem
    from trtx.recipe.parts import NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, name):
        why = "names have lower-case letters, digits, '.', '_' and '-', at most 63 characters"
        raise UsageProblem(f"'{name}' cannot be the name of a recipe", why=why, fix=f"try --name {_slug(name)}")
    return name


def _make_name(path: Path) -> str:
    """The file's name, or its folder's for `recipe.yaml`."""
    return _slug(path.stem if path.stem != "recipe" else path.absolute().parent.name)


def _slug(text: str) -> str:
    import re

    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:63] or "my-model"


def _write_schema(path: Path) -> None:
    """Write the schema, or renew one that trtx wrote. Raises UsageProblem for any other file of that name."""
    import json

    from trtx.errors import UsageProblem
    from trtx.files import write_text
    from trtx.hardware.gpus import GPUS
    from trtx.recipe.describe import ID, make_json_schema

    if path.exists():
        try:
            is_ours = json.loads(path.read_bytes()).get("$id") == ID
        except (OSError, ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise UsageProblem(f"{path} already exists and is not a recipe schema", fix="choose another folder")
    write_text(path, json.dumps(make_json_schema(GPUS), indent=2, ensure_ascii=False) + "\n")
