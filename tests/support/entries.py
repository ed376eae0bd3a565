"""Entries of a cache made without running steps."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store


def make_store(root: Path) -> Store:
    store = Store(root)
    store.prepare()
    return store


def key_of(number: int) -> str:
    """A key whose first digits differ from those of its neighbours."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}".rjust(64, "0")[::-1]


def publish_entry(
    store: Store,
    key: str,
    files: dict[str, bytes] | None = None,
    *,
    step: str = "build/cpu/fp32",
    recipe: str = "tiny",
    started: float | None = None,
) -> Manifest:
    """Publish an entry with the given files, by relative path."""
    with store.stage(key) as folder:
        for name, content in (files or {"engine.bin": key.encode()}).items():
            path = folder / "output" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        made = {"recipe": recipe, "host": "here", "started": started or time.time(), "duration_s": 1.5}
        return store.publish(folder, Manifest(key, step, step.split("/")[0], {"stage": "build"}, (), made, {}))


def set_last_use(store: Store, key: str, days_ago: float) -> None:
    moment = time.time() - days_ago * 86400
    os.utime(store.memo.path(key), (moment, moment))


def let_settle(store: Store) -> None:
    """Make every shard look as if nothing had happened in it for a while."""
    moment = time.time() - 60
    for folder in (store.root / "entries").iterdir():
        os.utime(folder, (moment, moment))


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content is hashed from now on; their digests come out wrong."""
    read: list[Path] = []
    monkeypatch.setattr("trtx.cache.digests.hash_file", lambda path, _advance: read.append(path) or "")
    return read
