"""What a list of entries shows, kept beside them, so that a list reads one file per shard and not one per entry.

index/<shard>.json holds the rows of entries/<shard>/ and that folder's mtime at the time. Adding and removing an entry
both move the mtime, so rows under the present mtime are right, whoever wrote them and whatever raced. As with git's
index, that holds only when the folder had been at rest for longer than its clock's tick when it was read, by the clock
of the file system: rows of a younger one are used once and not kept.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtx.cache.manifest import Manifest
from trtx.cache.store import Store, is_key
from trtx.files import parse_json, read_file

SCHEMA = "trtx.index/v1"
# Also covers file systems whose clock has a resolution of one or two seconds.
SETTLED_NS = 3_000_000_000


@dataclass(frozen=True)
class Row:
    """One entry in a list. `fault` is set, and all but the key unknown, when the manifest cannot be read.

    `made` is when its step started, seconds since the epoch; `size` the bytes of its files.
    """

    key: str
    step: str = ""
    stage: str = ""
    recipe: str = ""
    host: str = ""
    made: float = 0.0
    duration_s: float | None = None
    size: int = 0
    files: int = 0
    fault: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_rows(store: Store) -> list[Row]:
    """One row per entry, by key."""
    return [row for shard in store.shards() for row in _shard_rows(store, shard)]


def _shard_rows(store: Store, shard: str) -> list[Row]:
    folder, path = store.root / "entries" / shard, store.root / "index" / f"{shard}.json"
    try:
        mtime_ns = folder.stat().st_mtime_ns
    except OSError:
        return []
    known = _read(path, shard, mtime_ns)
    if known is not None:
        return known
    if 0 <= time.time_ns() - mtime_ns < SETTLED_NS:  # Not worth writing a file to ask for its clock.
        return _read_shard(store, shard)
    return _read_and_keep(store, shard, folder, path)


def _read_shard(store: Store, shard: str) -> list[Row]:
    return [make_row(key, store.peek(key)) for key in sorted(store.shard_keys(shard))]


def _read_and_keep(store: Store, shard: str, folder: Path, path: Path) -> list[Row]:
    """Read a shard's manifests and keep the rows, if nothing changed for a while before and nothing while reading.

    Not being able to keep them costs time and nothing else.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch()
        now_ns, mtime_ns = temporary.stat().st_mtime_ns, folder.stat().st_mtime_ns
        rows = _read_shard(store, shard)
        if now_ns - mtime_ns > SETTLED_NS and folder.stat().st_mtime_ns == mtime_ns:
            body = {"schema": SCHEMA, "mtime_ns": mtime_ns, "rows": [list(vars(row).values()) for row in rows]}
            temporary.write_text(json.dumps(body, ensure_ascii=False))
            temporary.replace(path)  # Not flushed: a torn index is no JSON and is made again.
    except OSError:
        rows = _read_shard(store, shard)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
    return rows


def make_row(key: str, manifest: Manifest | None) -> Row:
    try:
        if manifest is not None:
            return _row_of(key, manifest)
    except (AttributeError, TypeError, ValueError):  # It was altered: lists do not check digests.
        pass
    return Row(key, fault="its manifest cannot be read")


def _row_of(key: str, manifest: Manifest) -> Row:
    made = manifest.provenance
    return Row(
        key=key,
        step=str(manifest.step),
        stage=str(manifest.stage),
        recipe=str(made.get("recipe", "")),
        host=str(made.get("host", "")),
        made=float(made.get("started") or 0.0),
        duration_s=made.get("duration_s"),
        size=manifest.total_bytes,
        files=len(manifest.files),
    )


def _read(path: Path, shard: str, mtime_ns: int) -> list[Row] | None:
    """The kept rows of a shard, or None when there are none, or they are of another state of it."""
    try:
        body = parse_json(read_file(path))
        if body["schema"] != SCHEMA or body["mtime_ns"] != mtime_ns:
            return None
        rows = [Row(*values) for values in body["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return rows if all(_is_plausible(row, shard) for row in rows) else None


def _is_plausible(row: Row, shard: str) -> bool:
    """Whether a row is one that could have been written: keys become paths, which may be deleted."""
    texts, numbers = (row.key, row.step, row.stage, row.recipe, row.host), (row.made, row.size, row.files)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers)
        and is_key(row.key)
        and row.key.startswith(shard)
    )
