"""Which entries running jobs use or make: by the notes of their runs, leases and staging folders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtx.cache.runs import keys_of_runs
from trtx.cache.store import OWNER, Store
from trtx.files import read_json
from trtx.processes import is_gone

# A process of another host cannot be asked whether it lives. A lease shows it every few seconds; a staging folder that
# is older than any step takes is from a host that went away.
LEASE_SILENT_S = 3600.0
STAGING_OLD_S = 14 * 86400.0


def keys_in_use(store: Store) -> dict[str, str]:
    """Key → who uses or makes it, for people."""
    used = keys_of_runs(store.root)
    for note in _live_notes(store):
        who = f"in use by {note.get('step') or 'a step'}, process {note.get('pid')} on {note.get('host')}"
        uses = note.get("uses")
        keys = [note.get("key"), *(uses if isinstance(uses, list) else [])]
        used |= {key: who for key in keys if isinstance(key, str)}
    return used


def _live_notes(store: Store) -> Iterator[dict[str, Any]]:
    for path in (store.root / "leases").glob("[0-9a-f]*.json"):
        yield from _live(path, LEASE_SILENT_S)
    for path in (store.root / "tmp").glob(f"*/{OWNER}"):
        yield from _live(path, STAGING_OLD_S)


def _live(path: Path, max_age_s: float) -> Iterator[dict[str, Any]]:
    """The note at a path, unless its process is known to be gone or was not heard of for longer than `max_age_s`."""
    try:
        note = read_json(path)
        if time.time() - path.stat().st_mtime <= max_age_s and not is_gone(note):
            yield note
    except (OSError, ValueError, KeyError, TypeError):
        return
