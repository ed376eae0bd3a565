"""`trtx cache push pull export import keygen`: carry entries to other machines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from trtx.cli.cache_words import open_store
from trtx.cli.options import OutputFormat, OutputOption
from trtx.console import Console
from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed, did_you_mean

if TYPE_CHECKING:
    from trtx.cache.manifest import Manifest
    from trtx.cache.remote import Remote
    from trtx.cache.store import Store
    from trtx.plan.remotes import Hit, Remotes

# How often a person sees the progress of a transfer.
PROGRESS_S = 0.2


class Trust(StrEnum):
    """What an archive must have: true digests, or also signatures by keys that this site trusts."""

    DIGEST = "digest"
    SIGNED = "signed"


WordsArgument = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY|STEP]...", help="Keys, their beginnings, or globs of steps, as 'build/*/fp8'."),
]
RecipeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--recipe", metavar="RECIPE", help="What this recipe (or recipe.yaml:CELLS) is made of."),
]
LockOption = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--lock", metavar="FILE", help="What this lock file names; may be given several times."),
]
RemoteOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--remote", metavar="NAME", help="Only this remote; all of the site's when left out."),
]


def push(
    context: typer.Context,
    words: WordsArgument = None,
    recipe: RecipeOption = None,
    lock: LockOption = None,
    remote: RemoteOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Put entries on the remotes that take entries; all of the cache when nothing is named.

    What is there already is not sent again, so an interrupted push goes on where it was.
    """
    console: Console = context.obj
    store, remotes = open_store(), _open_remotes(remote)
    targets = [each for each in remotes.writable if remote in (None, each.name)]
    if not targets:
        why = "; ".join(remotes.notes()) or "their mode is `read`"
        raise UsageProblem("there is no remote to put entries on", why=why, fix="set `mode: read-write` for one")
    manifests = _load(store, _choose(console, store, words, recipe, lock))
    results = {target.name: _push_all(console, target, manifests, store) for target in targets}
    failed = [(name, *failure) for name, result in results.items() for failure in result["failed"].items()]
    for name, result in results.items():
        for key, why in result["skipped"].items():
            console.warn(f"{key[:16]} was not put on remote {name}: {why}")
        console.say(f"remote {name}: {len(result['sent'])} entries sent, {len(result['there'])} were there")
    error = None
    if failed:
        name, key, why = failed[0]
        error = EnvironmentProblem(
            f"{len(failed)} entries could not be put on remote {name}",
            why=f"the first, {key}: {why}",
            fix="run the same command again: it goes on where it was",
        )
    _finish(console, output, {"schema": "trtx.cache.push/v1", "remotes": results}, error)


def _finish(console: Console, output: OutputFormat, body: dict[str, Any], error: TrtxError | None) -> None:
    """Print the one JSON document, or let the error take it along."""
    if error is not None:
        error.document = body | {"error": error.to_json()}
        raise error
    if output is OutputFormat.JSON:
        console.json(body)


def _push_all(console: Console, target: Any, manifests: Iterable[Manifest], store: Store) -> dict[str, Any]:
    from trtx.cache.foreign import EntryRefused
    from trtx.cache.origin import EntryUntrusted
    from trtx.cache.remote import RemoteTrouble

    result: dict[str, Any] = {"sent": [], "there": [], "skipped": {}, "failed": {}}
    for manifest in manifests:
        show = _progress(console, f"{manifest.step} to {target.name}")
        try:
            is_new = target.push(manifest, store, show, threading.Event())
        except EntryUntrusted as error:
            result["skipped"][manifest.key] = str(error)
        except (EntryRefused, RemoteTrouble) as error:
            result["failed"][manifest.key] = str(error)
        else:
            result["sent" if is_new else "there"].append(manifest.key)
    return result


def pull(
    context: typer.Context,
    keys: Annotated[Optional[list[str]], typer.Argument(metavar="[KEY]...", help="Keys, in full.")] = None,  # noqa: UP045
    recipe: RecipeOption = None,
    lock: LockOption = None,
    remote: RemoteOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Take entries from the remotes into the cache: keys, all that a recipe is made of, or what a lock names."""
    from trtx.cache.store import is_key

    console: Console = context.obj
    named = keys or []
    if wrong := [key for key in named if not is_key(key)]:
        raise UsageProblem(f"'{wrong[0]}' is no key", fix="give all 64 digits, or --recipe, or --lock")
    if not (named or recipe or lock):
        raise UsageProblem("nothing to pull is named", fix="give keys, --recipe RECIPE or --lock FILE")
    store, remotes = open_store(), _open_remotes(remote)
    store.prepare()
    wanted = list(dict.fromkeys([*named, *_keys_of_recipe(console, recipe), *_keys_of_locks(lock)]))
    cached = [key for key in wanted if store.find(key).manifest is not None]
    pulled, refused = _pull_all(console, remotes, [key for key in wanted if key not in cached], store)
    done = {*cached, *pulled}
    missing = [key for key in wanted if key not in done and key not in refused]
    for note in remotes.notes():
        console.warn(note)
    console.say(f"{len(pulled)} entries taken, {len(cached)} were in the cache, {len(missing)} were not found")
    error: TrtxError | None = None
    if refused:
        key, why = next(iter(refused.items()))
        error = VerificationFailed(f"{len(refused)} entries were refused", why=f"the first, {key}: {why}")
    elif absent := [key for key in named if key in missing]:
        error = EnvironmentProblem(f"no remote has the entry {absent[0]}", why="; ".join(remotes.notes()))
    body = {"pulled": pulled, "cached": cached, "missing": missing, "refused": refused, "remotes": remotes.to_json()}
    _finish(console, output, {"schema": "trtx.cache.pull/v1", **body}, error)


def _pull_all(
    console: Console, remotes: Remotes, keys: list[str], store: Store
) -> tuple[dict[str, str], dict[str, str]]:
    """Key → remote it was taken from, and key → why it was refused everywhere."""
    from trtx.cache.foreign import EntryRefused
    from trtx.cache.remote import RemoteTrouble

    pulled: dict[str, str] = {}
    open_keys = keys
    while hits := remotes.find(open_keys):
        for key, hit in hits.items():
            try:
                _pull_one(console, hit, store)
                pulled[key] = hit.remote.name
            except EntryRefused as error:
                remotes.refuse(hit, str(error))
            except RemoteTrouble as error:
                remotes.skip(hit.remote, str(error))
        open_keys = [key for key in keys if key not in pulled]
    refused = {key: f"remote {name}: {why}" for (name, key), why in remotes.refused.items() if key not in pulled}
    return pulled, refused


def _pull_one(console: Console, hit: Hit, store: Store) -> None:
    show = _progress(console, f"{hit.offer.manifest.step} from {hit.remote.name}")
    hit.remote.pull(hit.offer, store, show, threading.Event())


def export_archive(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive to write: .tar, or .tar.gz to compress.")],
    words: WordsArgument = None,
    recipe: RecipeOption = None,
    lock: LockOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Write entries to one file, for a site without a network; all of the cache when nothing is named."""
    from trtx.cache.archive import export_entries
    from trtx.plan.remotes import make_keyring, make_signer
    from trtx.plan.site import load_site
    from trtx.recipe.units import format_bytes

    console: Console = context.obj
    store = open_store()
    manifests = _load(store, _choose(console, store, words, recipe, lock))
    if not manifests:
        raise UsageProblem("there is nothing to export", fix="run `trtx apply` first, or name other entries")
    site = load_site(os.environ)
    signer = make_signer(site, os.environ)
    show = _progress(console, file.name)
    unsigned = export_entries(store, manifests, file, signer, show, make_keyring(site, signer))
    size = file.stat().st_size
    if output is OutputFormat.JSON:
        body = {"file": str(file), "bytes": size, "signed": not unsigned, "unsigned": sorted(unsigned)}
        console.json({"schema": "trtx.cache.export/v1", **body, "keys": [manifest.key for manifest in manifests]})
    for key, why in unsigned.items() if signer else ():
        console.warn(f"{key[:16]} was not signed: {why}")
    console.say(f"wrote {file}: {len(manifests)} entries, {format_bytes(size)}", style="ok")


def import_archive(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive that `trtx cache export` wrote.")],
    trust: Annotated[Trust, typer.Option("--trust", help="signed: every entry must be signed by a trusted key.")] = (
        Trust.DIGEST
    ),
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Bring the entries of an archive into the cache, after all of it was verified; or none of them."""
    from trtx.cache.archive import import_entries
    from trtx.plan.remotes import make_keyring, make_signer
    from trtx.plan.site import load_site

    console: Console = context.obj
    store = open_store()
    store.prepare()
    site = load_site(os.environ)
    keyring = make_keyring(site, make_signer(site, os.environ)) if trust is Trust.SIGNED else None
    entries, new = import_entries(file, store, keyring, _progress(console, file.name))
    if output is OutputFormat.JSON:
        body = {"keys": [manifest.key for manifest in entries], "new": [manifest.key for manifest in new]}
        console.json({"schema": "trtx.cache.import/v1", "file": str(file), **body})
    console.say(f"{len(new)} entries imported, {len(entries) - len(new)} were in the cache", style="ok")


def make_key(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key is put; never replaced.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Make a key that signs entries: the private one to FILE (mode 0600), the public one to stdout."""
    from trtx.cache.signing import make_key_file

    console: Console = context.obj
    public = make_key_file(file)
    if output is OutputFormat.JSON:
        console.json({"schema": "trtx.cache.keygen/v1", "file": str(file), "public_key": public})
        return
    print(public, file=console.out, flush=True)
    console.say(f"wrote {file}; in the site's configuration: `cache.sign.private_key` names it where entries are made,")
    console.say("and `cache.trusted_keys` has the public key wherever they are used")


def _open_remotes(name: str | None) -> Remotes:
    """The site's remotes. Raises UsageProblem without any, or for an unknown name."""
    from trtx.plan.remotes import Remotes, open_remotes
    from trtx.plan.site import REMOTES_VARIABLE, config_path

    remotes = open_remotes(os.environ)
    if remotes is None:
        raise UsageProblem(
            "there is no remote",
            why="TRTX_OFFLINE is set" if os.environ.get("TRTX_OFFLINE") else "none is configured",
            fix=f"add one under cache.remotes in {config_path(os.environ)}, or set {REMOTES_VARIABLE}",
        )
    if name is None:
        return remotes
    chosen: list[Remote] = [remote for remote in remotes.all if remote.name == name]
    if not chosen:
        known = [remote.name for remote in remotes.all]
        raise UsageProblem(f"there is no remote '{name}'", fix=did_you_mean(name, known))
    return Remotes(chosen, remotes.notes())


def _choose(
    console: Console, store: Store, words: list[str] | None, recipe: str | None, locks: list[Path] | None
) -> list[str]:
    """The keys of the named entries of the cache, or of all."""
    from trtx.cache.select import find_rows

    if not (words or recipe or locks):
        return store.keys()
    rows = find_rows(store, words) if words else []
    also = [*_keys_of_recipe(console, recipe), *_keys_of_locks(locks)]
    return list(dict.fromkeys([*(row.key for row in rows), *(key for key in also if store.entry(key).exists())]))


def _keys_of_recipe(console: Console, recipe: str | None) -> list[str]:
    if recipe is None:
        return []
    from trtx.cli.prepare import Request, prepare

    return [step.key for step in prepare(console, Request(recipe)).plan.steps]


def _keys_of_locks(locks: list[Path] | None) -> list[str]:
    from trtx.plan.lock import read_lock

    keys: set[str] = set()
    for path in locks or []:
        lock = read_lock(path)
        if lock is None:
            raise UsageProblem(f"there is no lock {path}", fix="check --lock")
        keys.update(lock.entries.values())
    return sorted(keys)


def _load(store: Store, keys: Iterable[str]) -> list[Manifest]:
    """The manifests of entries that are intact. Raises VerificationFailed for one that is not."""
    manifests = []
    for key in keys:
        found = store.find(key)
        if found.fault:
            raise VerificationFailed(f"the entry {key} is corrupt", why=found.fault, fix="run `trtx cache verify`")
        if found.manifest is not None:
            manifests.append(found.manifest)
    return manifests


def _progress(console: Console, what: str) -> Callable[[int, int], None]:
    """One line that is redrawn while a person watches; elsewhere one line at the end."""
    from trtx.recipe.units import format_bytes

    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        if done >= total and not console.interactive:
            console.say(f"{what}: {format_bytes(total)}")
        now = time.monotonic()
        if console.interactive and console.verbosity >= 0 and (now - last >= PROGRESS_S or done >= total):
            last = now
            end = "\n" if done >= total else ""
            console.err.write(f"\r{what}: {format_bytes(done)} of {format_bytes(total)}\x1b[K{end}")
            console.err.flush()

    return show
