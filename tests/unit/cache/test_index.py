"""Lists of entries are right whatever raced, and read one file per shard."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.entries import key_of, let_settle, make_store, publish_entry

from trtx.cache.index import list_rows
from trtx.cache.store import Store

NESTED = "[" * 100_000
KEYS = ["ab" + f"{number:062x}" for number in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "cache")


def count_peeks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    peeked: list[str] = []
    peek = Store.peek
    monkeypatch.setattr(Store, "peek", lambda self, key: peeked.append(key) or peek(self, key))
    return peeked


def test_a_row_says_what_the_manifest_says(store: Store) -> None:
    publish_entry(store, KEYS[0], {"a": b"12", "b/c": b"345"}, step="package/cpu/int8", recipe="chat", started=7.0)
    [row] = list_rows(store)
    assert row.to_json() == {
        "key": KEYS[0],
        "step": "package/cpu/int8",
        "stage": "package",
        "recipe": "chat",
        "host": "here",
        "made": 7.0,
        "duration_s": 1.5,
        "size": 5,
        "files": 2,
        "fault": None,
    }


def test_a_settled_shard_is_read_from_its_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*KEYS, key_of(5)):
        publish_entry(store, key)
    let_settle(store)
    first = list_rows(store)
    peeked = count_peeks(monkeypatch)
    assert list_rows(store) == first
    assert peeked == []
    assert [row.key for row in first] == sorted([*KEYS, key_of(5)])


def test_a_shard_that_just_changed_is_not_indexed(store: Store) -> None:
    publish_entry(store, KEYS[0])
    assert len(list_rows(store)) == 1
    assert list((store.root / "index").iterdir()) == []


def test_an_entry_added_or_removed_after_the_index_was_written_is_seen(store: Store) -> None:
    publish_entry(store, KEYS[0])
    let_settle(store)
    list_rows(store)
    publish_entry(store, KEYS[1])
    assert [row.key for row in list_rows(store)] == KEYS[:2]
    let_settle(store)
    list_rows(store)
    store.remove(KEYS[0])
    assert [row.key for row in list_rows(store)] == KEYS[1:2]


def test_a_change_while_the_shard_is_read_is_not_hidden_by_the_index(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_entry(store, KEYS[0])
    let_settle(store)
    peek = Store.peek
    done: list[int] = []

    def publish_meanwhile(self: Store, key: str) -> object:
        if not done:
            done.append(1)
            publish_entry(store, KEYS[1])
        return peek(self, key)

    monkeypatch.setattr(Store, "peek", publish_meanwhile)
    list_rows(store)
    assert [row.key for row in list_rows(store)] == KEYS[:2]


def test_a_clock_of_the_file_system_that_differs_does_not_hide_a_young_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_entry(store, KEYS[0])
    monkeypatch.setattr("trtx.cache.index.time.time_ns", lambda: 1)  # This host's clock is far behind.
    list_rows(store)
    assert list((store.root / "index").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", NESTED, '{"schema": "trtx.index/v2"}', '{"schema": "trtx.index/v1"}'])
def test_a_damaged_index_is_made_again(store: Store, text: str) -> None:
    publish_entry(store, KEYS[0])
    let_settle(store)
    expected = list_rows(store)
    [path] = (store.root / "index").iterdir()
    path.write_text(text)
    assert list_rows(store) == expected
    assert json.loads(path.read_text())["schema"] == "trtx.index/v1"


def test_without_a_folder_for_indexes_lists_are_only_slower(store: Store) -> None:
    publish_entry(store, KEYS[0])
    let_settle(store)
    (store.root / "index").rmdir()
    assert len(list_rows(store)) == 1


def test_an_entry_whose_manifest_cannot_be_read_is_listed_with_its_fault(store: Store) -> None:
    publish_entry(store, KEYS[0])
    path = store.entry(KEYS[0]) / "manifest.json"
    path.chmod(0o644)
    os.truncate(path, 10)
    [row] = list_rows(store)
    assert (row.key, row.fault) == (KEYS[0], "its manifest cannot be read")


@pytest.mark.parametrize("started", ["soon", [1], {"at": 1}])
def test_an_entry_with_a_nonsensical_manifest_is_listed_as_such(store: Store, started: Any) -> None:
    publish_entry(store, KEYS[0], started=started)
    [row] = list_rows(store)
    assert row.key == KEYS[0] and row.fault


def keep_rows(store: Store, change: Callable[[list[Any]], None]) -> None:
    """Publish an entry, and alter what is kept of it."""
    publish_entry(store, KEYS[0], started=7.0)
    let_settle(store)
    list_rows(store)
    path = store.root / "index" / f"{KEYS[0][:2]}.json"
    body = json.loads(path.read_text())
    change(body["rows"][0])
    path.write_text(json.dumps(body))


@pytest.mark.parametrize("key", ["../../elsewhere", KEYS[0].replace("ab", "cd"), "ab", 7, None])
def test_kept_rows_with_keys_of_elsewhere_are_not_believed(store: Store, key: Any) -> None:
    keep_rows(store, lambda row: row.__setitem__(0, key))
    assert [row.key for row in list_rows(store)] == [KEYS[0]]


def test_kept_rows_with_values_of_other_kinds_are_not_believed(store: Store) -> None:
    keep_rows(store, lambda row: row.__setitem__(5, "long ago"))
    assert [row.made for row in list_rows(store)] == [7.0]
