"""`cache verify` reads everything, finds every alteration, and moves what is corrupt out of the way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.entries import key_of, make_store, publish_entry, set_last_use
from support.steps import corrupt

from trtx.cache import digests
from trtx.cache.store import Store
from trtx.cache.verify import verify_entries

FILES = {"engine.json": b'{"a": 1}', "programs/decode.pt2": bytes(range(256)) * 3, "empty": b""}
KEY = key_of(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "cache")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one entry; who alters it puts it right again."""
    store = make_store(tmp_path_factory.mktemp("one") / "cache")
    publish_entry(store, KEY, FILES)
    return store


def test_intact_entries_are_told_with_their_size_and_last_use_stays(store: Store) -> None:
    for number in range(3):
        publish_entry(store, key_of(number), FILES)
    set_last_use(store, key_of(1), 5)
    seen: list[tuple[int, int]] = []
    checked = verify_entries(store, store.keys(), progress=lambda done, total: seen.append((done, total)))
    assert [(entry.fault, entry.size) for entry in checked] == [(None, 776)] * 3
    assert seen[-1] == (3 * 776, 3 * 776)
    used = store.memo.last_use(key_of(1))
    assert used is not None and abs(time.time() - used - 5 * 86400) < 60


def test_what_the_memo_believes_does_not_matter(store: Store) -> None:
    publish_entry(store, KEY, FILES)
    path = store.output(KEY) / "engine.json"
    corrupt(path)
    info = path.stat()
    memo = store.memo.read(KEY)
    memo["engine.json"] = [info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]
    store.memo.write(KEY, memo)
    assert store.find(KEY).manifest is not None
    [checked] = verify_entries(store, [KEY])
    assert checked.fault == "engine.json does not have its recorded SHA-256"
    assert checked.quarantined is not None and checked.quarantined.is_dir()
    assert store.find(KEY).fault is None and store.find(KEY).manifest is None


def test_many_threads_find_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PARALLEL_FROM_BYTES", 0)
    for number in range(20):
        publish_entry(store, key_of(number), {"a": os.urandom(number * 100), "b": b"x"})
    corrupt(store.output(key_of(7)) / "a")
    corrupt(store.output(key_of(13)) / "b")
    checked = {entry.key: entry.fault for entry in verify_entries(store, store.keys(), threads=4)}
    assert {key for key, fault in checked.items() if fault} == {key_of(7), key_of(13)}
    assert len(checked) == 20


def test_files_are_hashed_the_largest_first_and_queued_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PARALLEL_FROM_BYTES", 0)
    files = []
    for number in range(300):
        path = tmp_path / str(number)
        path.write_bytes(bytes(number))
        files.append((path, number))
    read: list[int] = []
    monkeypatch.setattr(digests, "hash_file", lambda path, _advance: read.append(int(path.name)) or "d")
    assert len(dict(digests.hash_files(files, threads=2))) == 300
    assert read[0] in (298, 299) and read[-1] in (0, 1)


def fail_reads(monkeypatch: pytest.MonkeyPatch, inode: int, times: int) -> None:
    """The disk cannot read one file, so many times."""
    hash_file = digests.hash_file
    failures = iter(range(times))

    def read(path: Path, advance: object) -> str:
        if path.stat().st_ino == inode and next(failures, None) is not None:
            raise OSError(5, "Input/output error")
        return hash_file(path, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(digests, "hash_file", read)


@pytest.mark.parametrize(("times", "fault"), [(100, "engine.json: Input/output error"), (1, None)])
def test_an_unreadable_file_is_a_fault_of_its_entry_alone_unless_it_can_be_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, times: int, fault: str | None
) -> None:
    for number in range(2):
        publish_entry(store, key_of(number), FILES)
    fail_reads(monkeypatch, (store.output(key_of(0)) / "engine.json").stat().st_ino, times)
    checked = {entry.key: entry.fault for entry in verify_entries(store, store.keys())}
    assert checked == {key_of(0): fault, key_of(1): None}
    assert (store.find(key_of(0)).manifest is None) is (fault is not None)


def test_an_entry_removed_while_it_is_read_is_no_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_entry(store, KEY, FILES)
    hash_file = digests.hash_file

    def remove_first(path: Path, advance: object) -> str:
        store.remove(KEY)
        return hash_file(path, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(digests, "hash_file", remove_first)
    assert verify_entries(store, [KEY]) == []
    assert list((store.root / "quarantine").iterdir()) == []


def test_a_good_entry_published_in_place_of_a_corrupt_one_is_not_quarantined(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_entry(store, KEY, FILES)
    corrupt(store.output(KEY) / "engine.json")
    hash_file = digests.hash_file
    done: list[int] = []

    def replace_first(path: Path, advance: object) -> str:
        digest = hash_file(path, advance)  # type: ignore[arg-type]
        if path.name == "empty" and not done:  # The last one: all others were read.
            done.append(1)
            store.quarantine(KEY)
            publish_entry(store, KEY, FILES)
        return digest

    monkeypatch.setattr(digests, "hash_file", replace_first)
    assert verify_entries(store, [KEY]) == []
    assert store.find(KEY).manifest is not None


def flip(path: Path, bit: int) -> bytes:
    """Flip one bit of a write-protected file in place; returns what was there."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[bit // 8] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(changed)
    path.chmod(0o444)
    return before


BITS = [(name, bit) for name, content in FILES.items() for bit in range(8 * len(content))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(BITS), keep_mtime=st.booleans())
def test_a_flipped_bit_anywhere_in_any_file_is_found(one: Store, place: tuple[str, int], keep_mtime: bool) -> None:
    assert one.find(KEY).manifest is not None  # Every file is in the memo.
    name, bit = place
    path = one.output(KEY) / name
    times = path.stat()
    before = flip(path, bit)
    if keep_mtime:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert one.find(KEY).fault == f"{name} does not have its recorded SHA-256"
    path.chmod(0o644)
    path.write_bytes(before)
    path.chmod(0o444)


def test_a_manifest_cut_anywhere_is_found(one: Store) -> None:
    path = one.entry(KEY) / "manifest.json"
    whole = path.read_bytes()
    path.chmod(0o644)
    try:
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            fault = one.find(KEY).fault
            assert fault is not None and fault.startswith("manifest.json"), length
    finally:
        path.write_bytes(whole)
    assert one.find(KEY).manifest is not None


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(one: Store) -> None:
    path = one.entry(KEY) / "manifest.json"
    whole = path.read_bytes()
    path.chmod(0o644)
    try:
        for bit in range(8 * len(whole)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert one.find(KEY).fault is not None, bit
    finally:
        path.write_bytes(whole)


def test_a_corrupt_entry_is_made_again_by_who_needs_it_next(store: Store) -> None:
    publish_entry(store, KEY, FILES)
    corrupt(store.output(KEY) / "programs/decode.pt2")
    assert verify_entries(store, [KEY])[0].fault
    publish_entry(store, KEY, FILES)
    assert verify_entries(store, [KEY])[0].fault is None
