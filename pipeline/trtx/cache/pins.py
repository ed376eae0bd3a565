"""Entries that people marked to be kept: pins/<key>.json."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trtx.cache.store import Store, is_key
from trtx.files import disk_errors, read_json, write_json


@dataclass(frozen=True)
class Pin:
    """A mark on one entry: why, by whom and when (seconds since the epoch)."""

    key: str
    step: str
    note: str
    by: str
    when: float


def pin_entry(store: Store, key: str, step: str, note: str) -> Pin:
    """Keep an entry from being pruned; a second pin replaces the note."""
    pin = Pin(key, step, note, _user(), round(time.time(), 3))
    write_json(_path(store, key), asdict(pin))
    return pin


def unpin_entry(store: Store, key: str) -> bool:
    """Remove a pin; False when there was none."""
    with disk_errors(_path(store, key)):
        try:
            _path(store, key).unlink()
        except FileNotFoundError:
            return False
    return True


def list_pins(store: Store) -> Iterator[Pin]:
    """All pins, by key. The file's name is the key, whatever stands in it: a pin that cannot be read still pins."""
    for path in sorted((store.root / "pins").glob("*.json")):
        if not is_key(path.stem):
            continue
        try:
            yield replace(Pin(**read_json(path)), key=path.stem)
        except (OSError, ValueError, TypeError):
            yield Pin(path.stem, "", "", "", 0.0)


def is_pinned(store: Store, key: str) -> bool:
    return _path(store, key).exists()


def _path(store: Store, key: str) -> Path:
    return store.root / "pins" / f"{key}.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A user id without a name, as in containers.
        return ""
