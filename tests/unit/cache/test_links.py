"""Links that this process makes to an entry's files cost no reading, and hide nothing that others do to them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.entries import count_reads, make_store, publish_entry

from trtx.cache.store import Store
from trtx.files import link_or_copy

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "cache")


def edit_in_place(path: Path) -> None:
    """Change a byte and put the mtime back: only ctime tells."""
    info = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"X")
    path.chmod(0o444)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize("size", [10, 1 << 20])
@pytest.mark.parametrize("moment", ["before the link", "between two links", "after the link"])
def test_an_edit_that_hides_its_mtime_beside_a_link_is_found(store: Store, size: int, moment: str) -> None:
    publish_entry(store, KEY, {"weights": bytes(size)})
    weights = store.output(KEY) / "weights"
    if moment == "before the link":
        edit_in_place(weights)
    link_or_copy(weights, store.root / "tmp" / "one")
    time.sleep(0.02)  # Longer than the kernel's tick, which ctime moves with.
    if moment == "between two links":
        edit_in_place(weights)
    link_or_copy(weights, store.root / "tmp" / "two")
    if moment == "after the link":
        time.sleep(0.02)
        edit_in_place(weights)
    store.accept_links(KEY)
    assert "SHA-256" in (store.find(KEY).fault or "")


def test_a_large_file_that_only_this_process_linked_to_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_entry(store, KEY, {"weights": bytes(1 << 20)})
    for name in ("one", "two"):
        link_or_copy(store.output(KEY) / "weights", store.root / "tmp" / name)
    read = count_reads(monkeypatch)
    store.accept_links(KEY)
    assert store.find(KEY).manifest is not None
    assert read == []
