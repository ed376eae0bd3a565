"""Pruning deletes the longest unused first, never what is pinned, locked or in use, and nothing outside the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.entries import key_of, make_store, publish_entry, set_last_use

from trtx.cache import usage
from trtx.cache.index import Row
from trtx.cache.lease import lease_path, take_lease
from trtx.cache.manifest import Manifest
from trtx.cache.pins import list_pins, pin_entry, unpin_entry
from trtx.cache.prune import Candidate, PruneList, keys_to_keep, list_prunable, measure, prune, unique_bytes
from trtx.cache.store import OWNER, Store
from trtx.errors import EnvironmentProblem
from trtx.processes import describe_this_process

DAY_S = 86400.0
SIZE = 64 << 10
NESTED = "[" * 100_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "cache")


@pytest.fixture
def four(store: Store) -> list[str]:
    """The keys of four entries of 64 KiB, unused for 4, 3, 2 and 1 days."""
    keys = [key_of(number) for number in range(4)]
    for days, key in zip((4, 3, 2, 1), keys, strict=True):
        publish_entry(store, key, {"engine.bin": os.urandom(SIZE)})
        set_last_use(store, key, days)
    return keys


def choose(store: Store, **limits: float) -> PruneList:
    return list_prunable(measure(store), keys_to_keep(store), **limits)  # type: ignore[arg-type]


def doomed(chosen: PruneList) -> list[str]:
    return [entry.row.key for entry in chosen.doomed]


def test_what_was_unused_for_too_long_goes(store: Store, four: list[str]) -> None:
    chosen = choose(store, unused_s=2.5 * DAY_S)
    assert doomed(chosen) == four[:2]
    assert {entry.reason for entry in chosen.doomed} == {"unused for too long"}


def test_the_longest_unused_go_until_the_rest_fits(store: Store, four: list[str]) -> None:
    total = choose(store).total_bytes
    chosen = choose(store, max_bytes=total // 2)
    assert doomed(chosen) == four[:2]
    assert chosen.freed_bytes == total // 2


def test_a_hit_is_a_use(store: Store, four: list[str]) -> None:
    assert store.find(four[0]).manifest is not None
    assert doomed(choose(store, unused_s=2.5 * DAY_S)) == four[1:2]


def test_hits_within_an_hour_write_nothing(store: Store, four: list[str]) -> None:
    store.find(four[0])
    before = store.memo.path(four[0]).stat()
    store.find(four[0])
    assert store.memo.path(four[0]).stat().st_ctime_ns == before.st_ctime_ns


def test_a_dry_run_and_the_run_are_the_same_list(store: Store, four: list[str]) -> None:
    chosen = choose(store, unused_s=2.5 * DAY_S)
    assert prune(store, chosen) == chosen
    assert store.keys() == sorted(four[2:])
    assert list((store.root / "tmp").iterdir()) == []


def test_files_that_entries_share_are_counted_and_freed_once(store: Store, four: list[str]) -> None:
    with store.stage(key_of(9)) as folder:
        os.link(store.output(four[0]) / "engine.bin", folder / "output" / "engine.bin")
        store.publish(folder, Manifest(key_of(9), "package/cpu", "package", {}, (), {"started": time.time()}, {}))
    entries = measure(store)
    both = [entry for entry in entries if entry.row.key in (four[0], key_of(9))]
    assert SIZE <= unique_bytes(both) < 2 * SIZE
    chosen = list_prunable(entries, {}, unused_s=3.5 * DAY_S)
    assert doomed(chosen) == [four[0]]
    assert chosen.freed_bytes < SIZE  # The other one holds its engine.
    assert list_prunable(entries, {}, max_bytes=0).freed_bytes == unique_bytes(entries)


def test_what_a_pin_or_a_lock_names_stays_whatever_its_age(store: Store, four: list[str], tmp_path: Path) -> None:
    pin_entry(store, four[0], "build/cpu/fp32", "the release")
    lock = tmp_path / "recipe.lock.yaml"
    lock.write_text(f"entries:\n  build: {four[1]}\nother: sha256:{'f' * 63}\n")
    keep = keys_to_keep(store, [lock])
    chosen = list_prunable(measure(store), keep, max_bytes=0)
    assert doomed(chosen) == four[2:]
    assert chosen.kept == {four[0]: "pinned: the release", four[1]: f"named by {lock}"}


def test_what_a_running_step_makes_or_uses_stays(store: Store, four: list[str]) -> None:
    held = take_lease(lease_path(store.root, key_of(20)), {"key": key_of(20), "step": "build/a", "uses": [four[0]]})
    assert held is not None
    with store.stage(key_of(21), uses=[four[1]]):
        chosen = choose(store, max_bytes=0)
        assert doomed(chosen) == four[2:]
        assert "in use by build/a" in chosen.kept[four[0]]
    held.release()
    assert doomed(choose(store, max_bytes=0)) == four


def test_what_a_killed_step_used_does_not_stay(store: Store, four: list[str]) -> None:
    script = (
        "import os, sys; from pathlib import Path; from trtx.cache.store import Store\n"
        "with Store(Path(sys.argv[1])).stage('ef' * 32, [sys.argv[2]]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(store.root), four[0]], check=False)
    chosen = choose(store, unused_s=3.5 * DAY_S)
    assert doomed(prune(store, chosen)) == four[:1]
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(("age_s", "stays"), [(0.0, True), (2 * usage.LEASE_SILENT_S, False)])
def test_a_lease_of_another_host_counts_while_it_shows_itself(
    store: Store, four: list[str], age_s: float, stays: bool
) -> None:
    path = lease_path(store.root, key_of(20))
    path.write_text(json.dumps(describe_this_process() | {"host": "elsewhere", "uses": [four[0]]}))
    moment = time.time() - age_s
    os.utime(path, (moment, moment))
    assert (four[0] not in doomed(choose(store, max_bytes=0))) is stays


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", NESTED, '{"host": 1, "uses": [2]}', '{"host": 1, "uses": 5}'])
def test_a_damaged_note_keeps_nothing_and_stops_nothing(store: Store, four: list[str], text: str) -> None:
    lease_path(store.root, key_of(20)).write_text(text)
    (store.root / "tmp" / "x").mkdir()
    (store.root / "tmp" / "x" / OWNER).write_text(text)
    assert doomed(choose(store, max_bytes=0)) == four


def test_what_was_pinned_or_used_after_the_list_was_made_stays(store: Store, four: list[str]) -> None:
    chosen = choose(store, max_bytes=0)
    pin_entry(store, four[0], "", "")
    store.find(four[1])
    done = prune(store, chosen)
    assert doomed(done) == four[2:]
    assert done.kept == {four[0]: "pinned", four[1]: "used since the list was made"}
    assert store.keys() == sorted(four[:2])


def test_what_came_into_use_while_others_were_deleted_stays(
    store: Store, four: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, remove = [], store.remove

    def begin_a_job(key: str) -> bool:
        leases.append(take_lease(lease_path(store.root, key_of(20)), {"step": "package/x", "uses": [four[2]]}))
        return remove(key)

    chosen = choose(store, max_bytes=0)
    monkeypatch.setattr(store, "remove", begin_a_job)
    assert doomed(prune(store, chosen)) == [four[0], four[1], four[3]]
    assert leases[0] is not None
    leases[0].release()


def test_an_entry_that_another_pruned_first_is_not_told_twice(store: Store, four: list[str]) -> None:
    chosen = choose(store, max_bytes=0)
    assert doomed(prune(store, chosen)) == four
    assert doomed(prune(store, chosen)) == []


@pytest.mark.parametrize("text", [None, "", "Signature: 0000\n", "some text"])
def test_nothing_is_deleted_without_the_signature_of_a_cache(store: Store, four: list[str], text: str | None) -> None:
    chosen = choose(store, max_bytes=0)
    (store.root / "CACHEDIR.TAG").unlink()
    if text is not None:
        (store.root / "CACHEDIR.TAG").write_text(text)
    with pytest.raises(EnvironmentProblem, match="nothing is deleted"):
        prune(store, chosen)
    with pytest.raises(EnvironmentProblem, match="nothing is deleted"):
        store.remove(four[0])
    assert store.keys() == sorted(four)


@pytest.mark.parametrize("part", ["entries", "entries/{shard}"])
def test_links_out_of_the_cache_are_not_followed(store: Store, four: list[str], tmp_path: Path, part: str) -> None:
    chosen = choose(store, max_bytes=0)
    inside = store.root / part.format(shard=four[0][:2])
    outside = tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(EnvironmentProblem) as caught:
        store.remove(four[0])
    assert caught.value.why == f"{inside} is a link to another folder"
    with pytest.raises(EnvironmentProblem):
        prune(store, chosen)
    assert store.keys() == sorted(four)


def test_of_a_linked_entry_only_the_link_goes(store: Store, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other")
    publish_entry(other, key_of(0))
    (store.root / "entries" / key_of(0)[:2]).mkdir()
    store.entry(key_of(0)).symlink_to(other.entry(key_of(0)))
    assert store.find(key_of(0)).manifest is not None
    assert store.remove(key_of(0))
    assert other.find(key_of(0)).manifest is not None


def test_a_reader_of_an_entry_that_is_removed_sees_all_of_it_or_none(
    store: Store, four: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtx.cache import store as module

    look = module.inspect

    def remove_after(*arguments: object) -> object:
        seen = look(*arguments)  # type: ignore[arg-type]
        store.remove(four[0])
        return seen

    store.memo.forget(four[0])
    monkeypatch.setattr(module, "inspect", remove_after)
    found = store.find(four[0])
    assert (found.manifest, found.fault) == (None, None)


def test_trash_of_a_killed_pruning_is_taken_away_by_the_next(store: Store, four: list[str]) -> None:
    store.entry(four[0]).chmod(0o755)
    store.entry(four[0]).rename(store.root / "tmp" / "trash-1")
    prune(store, choose(store, unused_s=100 * DAY_S))
    assert list((store.root / "tmp").iterdir()) == []


def test_a_pin_is_replaced_listed_and_removed(store: Store, four: list[str]) -> None:
    pin_entry(store, four[0], "a", "first")
    pin_entry(store, four[0], "a", "second")
    assert [(pin.key, pin.note) for pin in list_pins(store)] == [(four[0], "second")]
    assert unpin_entry(store, four[0]) and not unpin_entry(store, four[0])


@pytest.mark.parametrize("key", [key_of(3), "", 7, [1], None])
def test_a_pin_is_of_the_key_that_names_its_file(store: Store, four: list[str], key: object) -> None:
    pin_entry(store, four[0], "a", "")
    path = store.root / "pins" / f"{four[0]}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": key}))
    assert list(keys_to_keep(store)) == [four[0]]


@pytest.mark.parametrize("text", ["{", "[1]", NESTED])
def test_a_pin_that_cannot_be_read_still_pins(store: Store, four: list[str], text: str) -> None:
    (store.root / "pins" / f"{four[0]}.json").write_text(text)
    (store.root / "pins" / "notes.json").write_text("{}")
    assert list(keys_to_keep(store)) == [four[0]]


candidates = st.lists(
    st.builds(
        lambda number, used, inodes: Candidate(Row(f"{number:064x}"), used, {(1, inode): 10 for inode in inodes}),
        st.integers(0, 2**64),
        st.floats(0, 100),
        st.sets(st.integers(0, 12), min_size=1, max_size=4),
    ),
    max_size=12,
    unique_by=lambda entry: entry.row.key,
).map(lambda found: sorted(found, key=lambda entry: (entry.used, entry.row.key)))


@given(entries=candidates, max_bytes=st.integers(0, 150), kept=st.sets(st.integers(0, 11)))
def test_the_rest_fits_unless_it_must_be_kept(entries: list[Candidate], max_bytes: int, kept: set[int]) -> None:
    keep = {entry.row.key: "" for number, entry in enumerate(entries) if number in kept}
    chosen = list_prunable(entries, keep, max_bytes=max_bytes, now=100.0)
    gone = set(doomed(chosen))
    left = [entry for entry in entries if entry.row.key not in gone]
    inodes = {inode for entry in left for inode in entry.inodes}
    assert chosen.total_bytes - chosen.freed_bytes == 10 * len(inodes)
    assert not gone & keep.keys()
    assert 10 * len(inodes) <= max_bytes or all(entry.row.key in keep for entry in left)
