"""`trtx cache prune`, `pin`, `unpin`, `rm`: what may go, and what must stay."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from trtx.cli.cache_words import SHOWN_KEY, format_age, open_store, parse_age, parse_size
from trtx.cli.options import OutputFormat, OutputOption
from trtx.errors import EnvironmentProblem, Interrupted, UsageProblem

if TYPE_CHECKING:
    from trtx.cache.prune import PruneList
    from trtx.console import Console

EntriesArgument = Annotated[
    list[str], typer.Argument(metavar="KEY|STEP...", help="Keys, their beginnings, or step names such as 'build/*'.")
]


def prune(
    context: typer.Context,
    max_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--max-size", metavar="SIZE", help="Delete the longest unused until the rest fits, as 50GB."),
    ] = None,
    older_than: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--older-than", metavar="AGE", help="Delete what was not used for so long, as 30d; 2h at least."),
    ] = None,
    locks: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--keep-lock", "--lock", metavar="FILE", help="Keep what this lock file names, too."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete entries by age and size, but never what a pin or a lock names or a running job uses.

    What killed processes left half-made goes, too.

    Locks in this folder, and those beside the recipes of the runs recorded here, count without being named.
    """
    from trtx.cache import prune as pruning

    console: Console = context.obj
    max_bytes, unused_s = parse_size("--max-size", max_size), parse_age("--older-than", older_than)
    if max_bytes is None and unused_s is None:
        raise UsageProblem("prune needs to know what may go", fix="give --max-size 50GB, --older-than 30d, or both")
    _check_age(older_than, unused_s)
    store = open_store()
    all_locks = _check_locks(locks or []) + _project_locks(Path.cwd())
    keep = pruning.keys_to_keep(store, all_locks) | _keys_of_live_runs(Path.cwd())
    chosen = pruning.list_prunable(pruning.measure(store), keep, max_bytes=max_bytes, unused_s=unused_s)
    if chosen.doomed:
        pruning.require_deletable(store, chosen)
        if not dry_run:
            _confirm(console, chosen, sure=yes, output=output)
            chosen = pruning.prune(store, chosen, all_locks)
    elif not dry_run:
        store.clean_staging()
    _print_outcome(console, chosen, all_locks, dry_run=dry_run, output=output)
    if chosen.failed:
        raise _make_error(chosen, _outcome_json(chosen, all_locks, dry_run=dry_run))


def _make_error(chosen: PruneList, outcome: dict[str, Any]) -> EnvironmentProblem:
    """The error for entries that should have gone and are still there."""
    (key, why), count = next(iter(chosen.failed.items())), len(chosen.failed)
    error = EnvironmentProblem(
        f"{count} {'entry' if count == 1 else 'entries'} could not be deleted",
        why=f"{key[:SHOWN_KEY]}: {why}",
        fix="run the same command as the user that the entries belong to",
    )
    error.document = outcome | {"error": error.to_json()}
    return error


def _check_age(older_than: str | None, unused_s: float | None) -> None:
    from trtx.cache.memo import USE_NOTED_EVERY_S

    # An entry may have been used that much later than is noted; twice that, so that the ages told mean something.
    if unused_s is not None and unused_s < 2 * USE_NOTED_EVERY_S:
        raise UsageProblem(
            f"--older-than {older_than} is too short",
            why=f"uses are noted every {format_age(USE_NOTED_EVERY_S)}: this could delete what was used just now",
            fix=f"give at least --older-than {2 * USE_NOTED_EVERY_S / 3600:g}h, or --max-size",
        )


def _check_locks(paths: list[Path]) -> list[Path]:
    for path in paths:
        if not path.is_file():
            raise UsageProblem(f"there is no lock file {path}", fix="check --keep-lock")
    return paths


def _project_locks(project: Path) -> list[Path]:
    """Locks in this folder, and those beside the recipes of all runs recorded here."""
    from trtx.files import read_json
    from trtx.paths import runs_dir
    from trtx.plan.lock import LOCK_SUFFIX, lock_path

    found = {path.resolve(): None for path in sorted(project.glob(f"*{LOCK_SUFFIX}")) if path.is_file()}
    for path in sorted(runs_dir(project).glob("*/plan.json")):
        try:
            lock = lock_path(project / read_json(path)["recipe"])
        except (OSError, ValueError, KeyError, TypeError):  # A record of another version.
            continue
        if lock.is_file():
            found[lock.resolve()] = None
    return list(found)


def _keys_of_live_runs(project: Path) -> dict[str, str]:
    """Every key of the plans of runs in this folder whose driver is there."""
    from trtx.files import read_json
    from trtx.paths import runs_dir
    from trtx.plan.record import RunRecord

    keys: dict[str, str] = {}
    for path in sorted(runs_dir(project).glob("*/plan.json")):
        record = RunRecord(path.parent)
        try:
            if record.is_driven():
                keys |= {step["key"]: f"in use by run {record.id}" for step in read_json(path)["steps"]}
        except (OSError, ValueError, KeyError, TypeError):  # A record of another version.
            continue
    return keys


def _confirm(console: Console, chosen: PruneList, *, sure: bool, output: OutputFormat) -> None:
    from trtx.recipe.units import format_bytes

    if sure:
        return
    if output is OutputFormat.JSON or not console.interactive:
        raise UsageProblem("prune asks before it deletes, and nobody is there to answer", fix="give --yes or --dry-run")
    _print_table(console, chosen)
    question = f"Delete {len(chosen.doomed)} entries, {format_bytes(chosen.freed_bytes)}?"
    if not typer.confirm(question, err=True):
        raise Interrupted("nothing was deleted")


def _print_outcome(
    console: Console, chosen: PruneList, locks: list[Path], *, dry_run: bool, output: OutputFormat
) -> None:
    from trtx.recipe.units import format_bytes

    if output is OutputFormat.JSON:
        if not chosen.failed:  # Else it is printed with the error.
            console.json(_outcome_json(chosen, locks, dry_run=dry_run))
        return
    if dry_run or console.verbosity > 0:
        _print_table(console, chosen)
    for key, reason in chosen.kept.items():
        console.detail(f"kept {key[:SHOWN_KEY]}: {reason}")
    for key, reason in chosen.failed.items():
        console.warn(f"{key[:SHOWN_KEY]} could not be deleted: {reason}")
    left = chosen.total_bytes - chosen.freed_bytes
    done = "would be deleted" if dry_run else "deleted"
    kept = f"; {len(chosen.kept)} kept that a pin, a lock or a running job names" if chosen.kept else ""
    console.say(
        f"{len(chosen.doomed)} entries {done}, {format_bytes(chosen.freed_bytes)}; {format_bytes(left)} left{kept}"
    )


def _outcome_json(chosen: PruneList, locks: list[Path], *, dry_run: bool) -> dict[str, Any]:
    return {
        "schema": "trtx.cache.prune/v1",
        "dry_run": dry_run,
        "deleted": [
            {
                "key": entry.row.key,
                "step": entry.row.step,
                "used": entry.used,
                "reason": entry.reason,
                "bytes": entry.freed,
            }
            for entry in chosen.doomed
        ],
        "kept": dict(chosen.kept),
        "failed": dict(chosen.failed),
        "locks": [str(path) for path in locks],
        "freed_bytes": chosen.freed_bytes,
        "left_bytes": chosen.total_bytes - chosen.freed_bytes,
    }


def _print_table(console: Console, chosen: PruneList) -> None:
    from trtx.recipe.units import format_bytes

    now = time.time()
    rows = [
        (
            entry.row.key[:SHOWN_KEY],
            entry.row.step,
            format_age(now - entry.used),
            format_bytes(entry.freed),
            entry.reason,
        )
        for entry in chosen.doomed
    ]
    console.table(("key", "step", "unused", "frees", "because"), rows, right=("unused", "frees"))


def pin(
    context: typer.Context,
    entries: EntriesArgument,
    note: Annotated[str, typer.Option("--note", help="Why, for people.")] = "",
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Keep entries from being pruned or removed; a step name pins all its entries."""
    from dataclasses import asdict

    from trtx.cache.pins import pin_entry
    from trtx.cache.select import find_rows

    console: Console = context.obj
    store = open_store()
    pins = [pin_entry(store, row.key, row.step, note) for row in find_rows(store, entries)]
    if output is OutputFormat.JSON:
        console.json({"schema": "trtx.cache.pin/v1", "pins": [asdict(made) for made in pins]})
        return
    for made in pins:
        console.say(f"pinned {made.key[:SHOWN_KEY]} {made.step}")


def unpin(context: typer.Context, entries: EntriesArgument, output: OutputOption = OutputFormat.TABLE) -> None:
    """Let entries be pruned again."""
    from trtx.cache.pins import list_pins, unpin_entry
    from trtx.cache.select import find_rows

    console: Console = context.obj
    store = open_store()
    # A pin outlives its entry when that was corrupt; its full key always names it.
    pinned = {made.key for made in list_pins(store)}
    lost = [word for word in entries if word in pinned]
    keys = [*lost, *(row.key for row in find_rows(store, [word for word in entries if word not in pinned]))]
    removed = [key for key in dict.fromkeys(keys) if unpin_entry(store, key)]
    if output is OutputFormat.JSON:
        console.json({"schema": "trtx.cache.unpin/v1", "unpinned": removed})
        return
    for key in removed:
        console.say(f"unpinned {key[:SHOWN_KEY]}")
    if not removed:
        console.say("none of these was pinned")


def remove(
    context: typer.Context,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys, or their beginnings.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete entries, whatever a lock says, but none that is pinned or in use; all of them or none."""
    from trtx.cache.pins import is_pinned
    from trtx.cache.select import find_keys
    from trtx.cache.usage import keys_in_use

    console: Console = context.obj
    store = open_store()
    chosen = find_keys(store, keys)
    used = keys_in_use(store) | _keys_of_live_runs(Path.cwd())
    for key in chosen:
        if is_pinned(store, key):
            raise UsageProblem(f"{key} is pinned", fix=f"trtx cache unpin {key[:SHOWN_KEY]}")
        if key in used:
            raise UsageProblem(f"{key} cannot be removed now", why=used[key], fix="wait until that has ended")
    removed = [key for key in chosen if store.remove(key)]
    if output is OutputFormat.JSON:
        console.json({"schema": "trtx.cache.rm/v1", "removed": removed})
        return
    for key in removed:
        console.say(f"removed {key[:SHOWN_KEY]}")
