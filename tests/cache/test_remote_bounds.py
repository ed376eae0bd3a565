"""What a remote says decides neither how many requests there are nor how much memory its answers take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.remotes import Place, make_entry, push, writable

from trtx.cache import remote as remote_module
from trtx.cache.foreign import EntryRefused
from trtx.cache.remote import RemoteTrouble, entry_name
from trtx.cache.store import Store


@pytest.mark.parametrize("chunk_bytes", [0, 1, (1 << 20) - 1, (16 << 20) + 1, 1 << 40, True, 2.0**20, "1048576"])
def test_pieces_of_a_senseless_size_are_refused(tmp_path: Path, store: Store, chunk_bytes: Any) -> None:
    place = Place(f"file://{tmp_path}/share")
    remote, sent = writable(place.url), make_entry(store, files={"x": b"a" * 10})
    push(remote, sent, store)
    chunks = [["ab" * 32] * (10 if chunk_bytes == 1 else 1)]
    text = place.blobs().read(entry_name(sent.key), 1 << 20)
    assert text is not None
    altered = json.loads(text) | {"chunk_bytes": chunk_bytes, "chunks": chunks}
    place.blobs().write(entry_name(sent.key), json.dumps(altered).encode())
    with pytest.raises(EntryRefused, match="its pieces have not between"):
        remote.find(sent.key)


def test_the_objects_of_many_entries_are_not_all_on_their_way_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, open_futures, most = writable(f"file://{tmp_path}/share"), 0, 0
    start, wait = remote._start, remote._wait

    def count_start(*arguments: Any, **options: Any) -> Any:
        nonlocal open_futures, most
        open_futures += 1
        most = max(most, open_futures)
        return start(*arguments, **options)

    def count_wait(*arguments: Any, **options: Any) -> Any:
        nonlocal open_futures
        open_futures -= 1
        return wait(*arguments, **options)

    monkeypatch.setattr(remote, "_start", count_start)
    monkeypatch.setattr(remote, "_wait", count_wait)
    assert remote.find_many([f"{number:064x}" for number in range(100)]) == ({}, {})
    assert most == remote_module.THREADS


def test_a_remote_whose_entries_fill_the_memory_is_given_up(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = writable(f"file://{tmp_path}/share")
    sent = [make_entry(store, number) for number in range(3)]
    for manifest in sent:
        push(remote, manifest, store)
    monkeypatch.setattr(remote_module, "MAX_FOUND_BYTES", 1000)
    with pytest.raises(RemoteTrouble, match="its entries have more than"):
        remote.find_many([manifest.key for manifest in sent])
