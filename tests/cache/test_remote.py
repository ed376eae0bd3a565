"""Entries travel over remotes whole and verified; what is wrong there is refused, and one writer of several wins."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from support.remotes import Place, alter_manifest, ignore_progress, make_entry, make_store, push, writable

from trtx.cache import remote as remote_module
from trtx.cache.blobs import DriverBlobs
from trtx.cache.foreign import EntryRefused
from trtx.cache.manifest import Manifest
from trtx.cache.remote import Offer, Remote, RemoteSpec, blob_name, entry_name
from trtx.cache.remote_push import WritableRemote
from trtx.cache.store import Store

NEVER = threading.Event()


@pytest.fixture
def remote(place: Place) -> WritableRemote:
    return writable(place.url, place.endpoint)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(remote_module, "MIN_CHUNK_BYTES", 1000)


def pull(remote: Remote, key: str, store: Store) -> Manifest:
    offer = remote.find(key)
    assert offer is not None
    return remote.pull(offer, store, ignore_progress, NEVER)


def test_an_entry_is_the_same_on_another_machine(
    remote: WritableRemote, store: Store, other_store: Store, small_chunks: None
) -> None:
    sent = make_entry(store, files={"a/b/c.bin": bytes(range(256)) * 10, "empty": b"", "exact": b"x" * 1000})
    assert push(remote, sent, store)
    assert pull(remote, sent.key, other_store) == sent
    assert (other_store.output(sent.key) / "a/b/c.bin").read_bytes() == bytes(range(256)) * 10
    assert other_store.find(sent.key).manifest == sent


def test_an_absent_entry_is_none(remote: WritableRemote) -> None:
    assert remote.find("ab" * 32) is None
    assert remote.find_many(["ab" * 32, "cd" * 32]) == ({}, {})


def test_many_entries_are_found_at_once(remote: WritableRemote, store: Store) -> None:
    sent = [make_entry(store, number) for number in range(5)]
    for manifest in sent:
        push(remote, manifest, store)
    offers, refused = remote.find_many([manifest.key for manifest in sent] + ["ab" * 32])
    assert {key: offer.manifest for key, offer in offers.items()} == {manifest.key: manifest for manifest in sent}
    assert refused == {}


def test_the_second_push_of_an_entry_sends_nothing(remote: WritableRemote, store: Store) -> None:
    sent = make_entry(store)
    assert push(remote, sent, store)
    assert not push(remote, sent, store)


def test_executable_files_stay_executable(remote: WritableRemote, store: Store, other_store: Store) -> None:
    manifest = make_entry(store)
    program = store.output(manifest.key) / "engine.json"
    program.chmod(0o555)
    push(remote, manifest, store)
    pull(remote, manifest.key, other_store)
    assert (other_store.output(manifest.key) / "engine.json").stat().st_mode & 0o777 == 0o555


def test_of_two_writers_one_wins_whole(place: Place, tmp_path: Path) -> None:
    stores = [make_store(tmp_path / f"machine-{number}") for number in range(4)]
    made = [make_entry(store, files={"x": b"%d" % n, "y": b"%d" % n * 99}) for n, store in enumerate(stores)]
    remotes = [writable(place.url, place.endpoint) for _ in stores]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, remotes, made, stores))
    reader = make_store(tmp_path / "reader")
    assert pull(remotes[0], made[0].key, reader) in made


def test_create_never_replaces(place: Place) -> None:
    blobs = place.blobs()
    assert blobs.create("v1/x", b"first")
    assert not blobs.create("v1/x", b"second")
    assert blobs.read("v1/x", 100) == b"first"


def test_a_folder_on_a_file_system_without_hard_links_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_create_never_replaces(Place(f"file://{tmp_path}"))


def test_a_server_without_conditional_writes_works(s3_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = s3_place.blobs()
    assert isinstance(blobs, DriverBlobs)
    pipe = blobs._fs.pipe_file

    class Answer(Exception):
        response: ClassVar[dict[str, Any]] = {"Error": {"Code": "NotImplemented"}}

    def refuse(path: str, data: bytes, **options: Any) -> Any:
        if options.get("mode") == "create":
            raise OSError(
                errno.EIO, "A header you provided implies functionality that is not implemented"
            ) from Answer()
        return pipe(path, data, **options)

    monkeypatch.setattr(blobs._fs, "pipe_file", refuse)
    assert blobs.create("v1/x", b"first")
    assert not blobs.create("v1/x", b"second")
    assert blobs.read("v1/x", 100) == b"first"


def test_only_one_of_many_creates_succeeds_on_a_folder(tmp_path: Path) -> None:
    place = Place(f"file://{tmp_path}")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: place.blobs().create("v1/x", b"%d" % number), range(32)))
    assert won.count(True) == 1


def spoil(place: Place, name: str, content: bytes) -> None:
    place.blobs().write(name, content)


def spoil_entry(place: Place, key: str, **changes: Any) -> None:
    """Replace members of an entry's object."""
    text = place.blobs().read(entry_name(key), 1 << 20)
    assert text is not None
    spoil(place, entry_name(key), json.dumps(json.loads(text) | changes).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html><body>502 Bad Gateway</body></html>",
        b"\x00\xff" * 50,
        b"[]",
        b"null",
        b'{"schema": "trtx.remote/v9"}',
        b"[" * 100_000,
        b'{"schema": "trtx.remote/v1", "manifest": "\\ud800", "chunk_bytes": 1, "chunks": [], "executables": [], '
        b'"signatures": []}',
        b'{"schema": "trtx.remote/v1", "manifest": {}, "chunk_bytes": 1, "chunks": [], "executables": [], '
        b'"signatures": []}',
    ],
)
def test_an_object_that_is_no_entry_is_refused(place: Place, content: bytes) -> None:
    spoil(place, entry_name("ab" * 32), content)
    with pytest.raises(EntryRefused):
        writable(place.url, place.endpoint).find("ab" * 32)


def test_a_truncated_entry_is_refused(place: Place, remote: WritableRemote, store: Store) -> None:
    sent = make_entry(store)
    push(remote, sent, store)
    text = place.blobs().read(entry_name(sent.key), 1 << 20)
    assert text is not None
    spoil(place, entry_name(sent.key), text[: len(text) // 2])
    with pytest.raises(EntryRefused, match="not an entry"):
        remote.find(sent.key)


def test_the_manifest_of_another_key_is_refused(place: Place, remote: WritableRemote, store: Store) -> None:
    one, two = make_entry(store, 1), make_entry(store, 2)
    push(remote, one, store)
    text = place.blobs().read(entry_name(one.key), 1 << 20)
    assert text is not None
    spoil(place, entry_name(two.key), text)
    with pytest.raises(EntryRefused, match=f"of the key {one.key}"):
        remote.find(two.key)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"factors": {"stage": "other"}}, "not the SHA-256 of its factors"),
        ({"files": [["../../escape", 1, "ab" * 32]]}, "leaves its folder"),
        ({"files": [["/etc/passwd", 1, "ab" * 32]]}, "absolute"),
        ({"files": [["a//b", 1, "ab" * 32]]}, "simplest form"),
        ({"files": [["a", 1, "ab" * 32], ["a", 1, "ab" * 32]]}, "there twice"),
        ({"files": [["a", 1, "ab" * 32], ["a/b", 1, "ab" * 32]]}, "both a file and a folder"),
        ({"files": [["a", -1, "ab" * 32]]}, "no valid size"),
        ({"files": [["a", True, "ab" * 32]]}, "no valid size"),
        ({"files": [["a", 1, "nothex"]]}, "no valid SHA-256"),
        ({"files": [["a\n", 1, "ab" * 32]]}, "control characters"),
        ({"files": [["a" * 300, 1, "ab" * 32]]}, "too long"),
        ({"files": [[1, 1, "ab" * 32]]}, "not a text"),
        ({"files": []}, "no files"),
        ({"step": 1}, "not a plain text"),
        ({"step": "build/\x1b]0;owned\x07"}, "not a plain text"),
        ({"provenance": {"recipe": "\x1b[2J"}}, "not a plain text"),
        ({"summary": []}, "not a mapping"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(
    tmp_path: Path, store: Store, changes: dict[str, Any], why: str
) -> None:
    place = Place(f"file://{tmp_path}/share")
    remote, sent = writable(place.url), make_entry(store)
    push(remote, sent, store)
    spoil_entry(place, sent.key, manifest=alter_manifest(sent.dump(), **changes))
    with pytest.raises(EntryRefused, match=why):
        remote.find(sent.key)


def test_an_altered_manifest_is_refused(place: Place, remote: WritableRemote, store: Store) -> None:
    sent = make_entry(store)
    push(remote, sent, store)
    spoil_entry(place, sent.key, manifest=sent.dump().replace('"build/0"', '"build/1"'))
    with pytest.raises(EntryRefused, match="digest does not match"):
        remote.find(sent.key)


def blobs_of(offer: Offer | None) -> list[str]:
    assert offer is not None
    return [name for row in offer.chunks for name in row]


@pytest.mark.parametrize("damage", ["flip", "truncate", "lengthen", "html", "empty"])
def test_a_damaged_blob_is_refused_and_nothing_becomes_visible(
    place: Place, remote: WritableRemote, store: Store, other_store: Store, damage: str
) -> None:
    sent = make_entry(store)
    push(remote, sent, store)
    name = blobs_of(remote.find(sent.key))[-1]
    content = bytearray(place.blobs().read(blob_name(name), 1 << 20) or b"")
    content[len(content) // 2] ^= 1
    damaged = {
        "flip": bytes(content),
        "truncate": bytes(content[:-1]),
        "lengthen": bytes(content) + b"x",
        "html": b"<html>error</html>",
        "empty": b"",
    }
    spoil(place, blob_name(name), damaged[damage])
    with pytest.raises(EntryRefused, match="damaged"):
        pull(remote, sent.key, other_store)
    assert other_store.find(sent.key).manifest is None
    assert list((other_store.root / "tmp").iterdir()) == []


def test_a_missing_blob_is_refused(place: Place, remote: WritableRemote, store: Store, other_store: Store) -> None:
    sent = make_entry(store)
    push(remote, sent, store)
    place.blobs().remove(blob_name(blobs_of(remote.find(sent.key))[0]))
    with pytest.raises(EntryRefused, match="missing"):
        pull(remote, sent.key, other_store)


def test_blobs_that_make_another_file_are_refused(
    place: Place, remote: WritableRemote, store: Store, other_store: Store, small_chunks: None
) -> None:
    sent = make_entry(store, files={"x": b"a" * 1000 + b"b" * 1000})
    push(remote, sent, store)
    first, second = blobs_of(remote.find(sent.key))
    spoil_entry(place, sent.key, chunks=[[second, first]])
    with pytest.raises(EntryRefused, match="x does not have its recorded SHA-256"):
        pull(remote, sent.key, other_store)


@pytest.mark.parametrize("chunks", [[], [[]], [["ab" * 32]], [["ab" * 32] * 3], [["../../x"] * 2], "x", [[1, 2]]])
def test_a_list_of_blobs_that_does_not_fit_is_refused(
    tmp_path: Path, store: Store, small_chunks: None, chunks: Any
) -> None:
    place = Place(f"file://{tmp_path}/share")
    remote, sent = writable(place.url), make_entry(store, files={"x": b"a" * 2000})
    push(remote, sent, store)
    spoil_entry(place, sent.key, chunks=chunks)
    with pytest.raises(EntryRefused, match="list of blobs"):
        remote.find(sent.key)


def test_a_replaced_entry_is_good_again(place: Place, remote: WritableRemote, store: Store, other_store: Store) -> None:
    sent = make_entry(store)
    push(remote, sent, store)
    for name in blobs_of(remote.find(sent.key)):
        content = place.blobs().read(blob_name(name), 1 << 20) or b""
        spoil(place, blob_name(name), b"\0" * len(content))
    assert push(remote, sent, store, replace=True)
    assert pull(remote, sent.key, other_store) == sent


def test_garbage_in_the_place_of_an_entry_is_replaced(place: Place, remote: WritableRemote, store: Store) -> None:
    sent = make_entry(store)
    spoil(place, entry_name(sent.key), b"garbage")
    assert push(remote, sent, store)
    offer = remote.find(sent.key)
    assert offer is not None and offer.manifest == sent


def test_a_corrupt_entry_of_this_cache_is_not_put_anywhere(remote: WritableRemote, store: Store) -> None:
    sent = make_entry(store)
    path = store.output(sent.key) / "engine.json"
    path.chmod(0o644)
    path.write_bytes(b"[]")
    with pytest.raises(EntryRefused, match="does not have its recorded SHA-256"):
        push(remote, sent, store)
    assert remote.find(sent.key) is None


def test_a_remote_that_is_only_read_cannot_write(place: Place) -> None:
    remote = Remote(RemoteSpec("shared", place.url, endpoint=place.endpoint))
    assert not hasattr(remote, "push")
    assert not hasattr(remote, "write_object")


def test_a_cancelled_pull_leaves_nothing(remote: WritableRemote, store: Store, other_store: Store) -> None:
    sent = make_entry(store)
    push(remote, sent, store)
    offer = remote.find(sent.key)
    assert offer is not None
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        remote.pull(offer, other_store, ignore_progress, cancelled)
    assert other_store.find(sent.key).manifest is None
    assert list((other_store.root / "tmp").iterdir()) == []


def test_progress_counts_bytes(remote: WritableRemote, store: Store, other_store: Store, small_chunks: None) -> None:
    sent = make_entry(store, files={"x": b"a" * 2500})
    seen: list[tuple[int, int]] = []
    remote.push(sent, store, lambda done, total: seen.append((done, total)), NEVER)
    offer = remote.find(sent.key)
    assert offer is not None
    remote.pull(offer, other_store, lambda done, total: seen.append((done, total)), NEVER)
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)] * 2


NONSENSE = (None, True, -1, 1.5, "", [], {}, [[]], {"a": 1}, "../x", "\x1b[2J", 10**30, [1, 2, 3], ["a"])


def spoil_value(value: Any, random: Random) -> Any:
    """The value with one of its parts replaced, removed or added."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(NONSENSE)
    copied = value.copy()
    place = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    if random.random() < 0.2:
        del copied[place]
    else:
        copied[place] = spoil_value(value[place], random)
    return copied


@pytest.mark.parametrize("seed", range(5))
def test_whatever_an_object_says_it_is_taken_or_refused(tmp_path: Path, store: Store, seed: int) -> None:
    place = Place(f"file://{tmp_path}/share")
    remote, sent, random = writable(place.url), make_entry(store), Random(seed)
    push(remote, sent, store)
    text = place.blobs().read(entry_name(sent.key), 1 << 20)
    assert text is not None
    for number in range(100):
        body = json.loads(text)
        if number % 2:
            body = spoil_value(body, random)
        else:
            name = random.choice(("key", "step", "factors", "files", "provenance", "summary"))
            value = spoil_value(json.loads(body["manifest"])[name], random)
            body["manifest"] = alter_manifest(body["manifest"], **{name: value})
        spoil(place, entry_name(sent.key), json.dumps(body).encode())
        with suppress(EntryRefused):
            remote.find(sent.key)
