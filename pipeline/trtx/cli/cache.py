"""`trtx cache`: what is in the cache, whether it is intact, and what may go."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from trtx.cli import cache_prune, cache_transfer
from trtx.cli.cache_words import SHOWN_KEY, format_age, open_store, parse_age, parse_size
from trtx.cli.options import OutputFormat, OutputOption, StageName
from trtx.errors import VerificationFailed

if TYPE_CHECKING:
    from trtx.cache.index import Row
    from trtx.cache.prune import Candidate
    from trtx.cache.store import Store
    from trtx.cache.verify import Checked, Progress
    from trtx.console import Console

# How often a person sees the progress of a verification.
PROGRESS_S = 0.2


class Order(StrEnum):
    """What a list is sorted by: the newest, the largest and the longest unused come first."""

    MADE = "made"
    USED = "used"
    SIZE = "size"
    STEP = "step"
    KEY = "key"


KeysArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY]...", help="Keys, or their beginnings; all entries when left out."),
]


def list_entries(
    context: typer.Context,
    stage: Annotated[Optional[StageName], typer.Option("--stage", help="Only of this stage.")] = None,  # noqa: UP045
    recipe: Annotated[Optional[str], typer.Option("--recipe", help="Only of recipes with this name.")] = None,  # noqa: UP045
    step: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--step", metavar="GLOB", help="Only of these steps, as 'build/*/fp8'."),
    ] = None,
    older_than: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--older-than", metavar="AGE", help="Only what was not used for so long, as 30d."),
    ] = None,
    larger_than: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--larger-than", metavar="SIZE", help="Only what is larger, as 1GB."),
    ] = None,
    order: Annotated[Order, typer.Option("--sort", help="What comes first.")] = Order.MADE,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List the entries. When they were last used is looked up only for --sort used and --older-than."""
    from trtx.cache.index import list_rows

    unused_s, min_bytes = parse_age("--older-than", older_than), parse_size("--larger-than", larger_than)
    store = open_store()
    chosen = [row for row in list_rows(store) if _matches(row, stage, recipe, step, min_bytes)]
    used: dict[str, float] = {}
    if unused_s is not None or order is Order.USED:
        used = {row.key: store.memo.last_use(row.key) or row.made for row in chosen}
    if unused_s is not None:
        chosen = [row for row in chosen if time.time() - used[row.key] > unused_s]
    chosen = _sort(chosen, order, used)
    _print_rows(context.obj, chosen, used, output)


def _matches(row: Row, stage: StageName | None, recipe: str | None, step: str | None, min_bytes: int | None) -> bool:
    from fnmatch import fnmatchcase

    return (
        (stage is None or row.stage == stage.value)
        and (recipe is None or row.recipe == recipe)
        and (step is None or fnmatchcase(row.step, step))
        and (min_bytes is None or row.size > min_bytes)
    )


def _sort(rows: list[Row], order: Order, used: dict[str, float]) -> list[Row]:
    keys: dict[Order, Any] = {
        Order.MADE: lambda row: (-row.made, row.key),
        Order.USED: lambda row: (used[row.key], row.key),
        Order.SIZE: lambda row: (-row.size, row.key),
        Order.STEP: lambda row: (row.step, -row.made, row.key),
        Order.KEY: lambda row: row.key,
    }
    return sorted(rows, key=keys[order])


def _print_rows(console: Console, rows: list[Row], used: dict[str, float], output: OutputFormat) -> None:
    from trtx.recipe.units import format_bytes

    if output is OutputFormat.JSON:
        listed = [row.to_json() | ({"used": used[row.key]} if used else {}) for row in rows]
        console.json({"schema": "trtx.cache.ls/v1", "entries": listed})
        return
    now = time.time()
    table = [
        (
            row.key[:SHOWN_KEY],
            row.step or f"({row.fault})",
            row.recipe,
            format_bytes(row.size),
            format_age(now - row.made) if row.made else "",
            *((format_age(now - used[row.key]),) if used else ()),
        )
        for row in rows
    ]
    columns = ("key", "step", "recipe", "size", "made", *(("unused",) if used else ()))
    console.table(columns, table, right=("size", "made", "unused"))
    console.say(f"{len(rows)} entries, {format_bytes(sum(row.size for row in rows))}")


def show_usage(context: typer.Context, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show what the entries take on disk, by stage and by recipe; files that entries share are counted once."""
    from trtx.cache.prune import measure
    from trtx.kernels.shelf import shelf_bytes
    from trtx.paths import kernels_dir
    from trtx.recipe.units import format_bytes

    console: Console = context.obj
    store, shelf = open_store(), kernels_dir(os.environ)
    entries = measure(store)
    body: dict[str, Any] = {
        "schema": "trtx.cache.du/v1",
        "cache": str(store.root),
        "total": _sum(entries),
        "stages": _group(entries, "stage"),
        "recipes": _group(entries, "recipe"),
        "other": _other_bytes(store),
        "kernels": {"folder": str(shelf), "bytes": shelf_bytes(shelf)},
    }
    if output is OutputFormat.JSON:
        console.json(body)
        return
    table = [
        (kind, name or "(unknown)", str(row["entries"]), format_bytes(row["bytes"]))
        for kind, rows in (("stage", body["stages"]), ("recipe", body["recipes"]))
        for name, row in rows.items()
    ]
    table += [("", name, "", format_bytes(size)) for name, size in body["other"].items() if size]
    table.append(("total", "entries", str(body["total"]["entries"]), format_bytes(body["total"]["bytes"])))
    console.table(("by", "name", "entries", "on disk"), table, right=("entries", "on disk"))
    console.say(f"in {store.root}; files that entries share are counted once in each sum")
    if kept := body["kernels"]["bytes"]:
        console.say(f"besides, {format_bytes(kept)} of built kernels in {shelf}, which bounds itself")


def _sum(entries: list[Candidate]) -> dict[str, int]:
    from trtx.cache.prune import unique_bytes

    return {"entries": len(entries), "bytes": unique_bytes(entries)}


def _group(entries: list[Candidate], field: str) -> dict[str, dict[str, int]]:
    groups: dict[str, list[Candidate]] = {}
    for entry in entries:
        groups.setdefault(getattr(entry.row, field), []).append(entry)
    sums = {name: _sum(group) for name, group in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1]["bytes"]))


def _other_bytes(store: Store) -> dict[str, int]:
    """Bytes of what is in the cache folder beside entries."""
    from trtx.cache.failures import folder_bytes

    return {name: folder_bytes(store.root / name) for name in ("tmp", "failures", "quarantine")}


def verify(context: typer.Context, keys: KeysArgument = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Read every file again and compare it with its digest; corrupt entries are moved away and made anew when needed.

    Exit code 8 when one was corrupt.
    """
    from trtx.cache.select import find_keys
    from trtx.cache.verify import verify_entries
    from trtx.recipe.units import format_bytes

    console: Console = context.obj
    store = open_store()
    chosen = find_keys(store, keys) if keys else store.keys()
    began = time.monotonic()
    checked = verify_entries(store, chosen, progress=_progress(console))
    seconds = time.monotonic() - began
    corrupt = [entry for entry in checked if entry.fault]
    total = sum(entry.size for entry in checked)
    if output is OutputFormat.JSON:
        console.json(
            {
                "schema": "trtx.cache.verify/v1",
                "entries": len(checked),
                "bytes": total,
                "seconds": round(seconds, 3),
                "corrupt": [_describe_corrupt(entry) for entry in corrupt],
            }
        )
    elif corrupt:
        rows = [(entry.key[:SHOWN_KEY], entry.step, entry.fault or "", _moved_to(entry)) for entry in corrupt]
        console.table(("key", "step", "fault", "moved to"), rows, styles=["error"] * len(rows))
    if corrupt:
        error = VerificationFailed(
            f"{len(corrupt)} of {len(checked)} entries are corrupt",
            why=f"the first: {corrupt[0].step or corrupt[0].key}: {corrupt[0].fault}",
            fix=f"{_describe_moves(corrupt)}; check disk and memory",
        )
        if output is not OutputFormat.JSON:
            raise error
        console.error(error.render())  # The JSON above is the one document that tells it.
        raise typer.Exit(error.exit_code)
    rate = f", {format_bytes(total / seconds)}/s" if seconds > 0 else ""
    console.say(f"{len(checked)} entries are intact: {format_bytes(total)} in {seconds:.1f} s{rate}", style="ok")


def _moved_to(entry: Checked) -> str:
    return str(entry.quarantined or "(could not be moved)")


def _describe_moves(corrupt: list[Checked]) -> str:
    if all(entry.quarantined for entry in corrupt):
        return "they were moved away; the next `trtx apply` that needs them makes them anew"
    return "not all could be moved away: run this where the cache can be written"


def _describe_corrupt(entry: Checked) -> dict[str, Any]:
    moved = str(entry.quarantined) if entry.quarantined else None
    return {"key": entry.key, "step": entry.step, "fault": entry.fault, "quarantined": moved}


def _progress(console: Console) -> Progress | None:
    """One line that is redrawn while a person watches."""
    if not console.interactive or console.verbosity < 0:
        return None
    from trtx.recipe.units import format_bytes

    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_S or done >= total:
            last = now
            end = "\n" if done >= total else ""
            console.err.write(f"\r{format_bytes(done)} of {format_bytes(total)}\x1b[K{end}")
            console.err.flush()

    return show


app = typer.Typer(
    help="Look at the cache, check it, keep it small.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ls")(list_entries)
app.command("du")(show_usage)
app.command("verify")(verify)
app.command("prune")(cache_prune.prune)
app.command("pin")(cache_prune.pin)
app.command("unpin")(cache_prune.unpin)
app.command("rm")(cache_prune.remove)
app.command("export")(cache_transfer.export_archive)
app.command("import")(cache_transfer.import_archive)
app.command("push")(cache_transfer.push)
app.command("pull")(cache_transfer.pull)
app.command("keygen")(cache_transfer.make_key)
