"""`trtx probe`: what the command lines and options files of an installed TensorRT-LLM are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console

if TYPE_CHECKING:
    from trtx.backends.tensorrt_llm.surface import Surface


def command(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|IMAGE", help="A site-packages folder, an unpacked image, or an image of this Docker."
        ),
    ],
    write: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--write", metavar="FILE", help="Keep the result, to be used instead of the shipped tables."),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Read the exact options of a TensorRT-LLM release from its Python sources; nothing of it is imported or run."""
    from trtx.backends.tensorrt_llm.probe import describe_probe
    from trtx.files import write_json

    console: Console = context.obj
    surface, covered, problems = _read(source)
    document = describe_probe(surface, covered, problems, source)
    if write is not None:
        write_json(write, document)
    if output is OutputFormat.JSON:
        console.json(document)
        return
    console.table(("TensorRT-LLM", surface.version), [*_rows(surface), *_differences(surface, covered)])
    for problem in problems:
        console.warn(f"not read: {problem}")
    if write is not None:
        console.say(f"{console.paint('wrote', 'ok')} {write}")


def _read(source: str) -> tuple[Surface, tuple[str, ...], tuple[str, ...]]:
    import os
    import tempfile

    from trtx.backends.tensorrt_llm.probe import probe_folder
    from trtx.backends.tensorrt_llm.probe_image import export_sources
    from trtx.errors import UsageProblem

    folder = Path(source)
    if folder.is_dir():
        return probe_folder(folder)
    if folder.exists() or source.startswith(("/", "./", "../", "~")):
        raise UsageProblem(f"there is no folder {source}", fix="name a folder, or an image by its name")
    with tempfile.TemporaryDirectory(prefix="trtx-probe-") as temporary:
        export_sources(source, Path(temporary), os.environ)
        return probe_folder(Path(temporary))


def _rows(surface: Surface) -> list[tuple[str, str]]:
    tools = [(key, f"{len(tool.options)} options") for key, tool in surface.tools.items() if tool.options]
    counts = [
        ("schemas", len(surface.schemas)),
        ("architectures, engine flow", len(surface.engine_architectures)),
        ("architectures, PyTorch flow", len(surface.pytorch_architectures)),
        ("quantization algorithms", len(surface.quant_algos)),
    ]
    return [*tools, *((name, str(count)) for name, count in counts)]


def _differences(surface: Surface, covered: tuple[str, ...]) -> list[tuple[str, str]]:
    """How the shipped table of that release differs, where there is one."""
    from trtx.backends.tensorrt_llm.tables import known_releases, load_surface

    if surface.version not in known_releases():
        return [("shipped table", "none for this release")]
    shipped = load_surface(surface.version)
    rows: list[tuple[str, str]] = []
    for key, tool in surface.tools.items():
        if key in shipped.tools:
            here = {flag for option in tool.options for flag in option.flags}
            there = {flag for option in shipped.tools[key].options for flag in option.flags}
            notes = [*(f"+{flag}" for flag in sorted(here - there)), *(f"-{flag}" for flag in sorted(there - here))]
            if notes:
                rows.append((f"{key}: not as shipped", " ".join(notes)))
        else:
            rows.append((f"{key}: not as shipped", "new"))
    return rows or [("shipped table", "has the same options")]
