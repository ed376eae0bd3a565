"""Archives carry entries to sites without a network; nothing that is wrong with one gets into a cache."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.remotes import alter_manifest, ignore_progress, make_entry, make_store

from trtx.cache import archive
from trtx.cache.archive import INDEX, export_entries, import_entries
from trtx.cache.manifest import Manifest
from trtx.cache.signing import Keyring, load_signer, make_key_file
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem, TrtxError, UsageProblem, VerificationFailed
from trtx.files import sha256_bytes

Members = list[tuple[tarfile.TarInfo, bytes]]


def export(store: Store, path: Path, *manifests: Manifest) -> Path:
    export_entries(store, manifests, path, None, ignore_progress)
    return path


def bring(path: Path, store: Store, keyring: Keyring | None = None) -> tuple[list[Manifest], list[Manifest]]:
    return import_entries(path, store, keyring, ignore_progress)


def assert_empty(store: Store) -> None:
    assert list(store.manifests()) == []
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["cache.tar", "cache.tar.gz", "cache.tgz"])
def test_entries_come_out_as_they_went_in(tmp_path: Path, store: Store, other_store: Store, name: str) -> None:
    sent = [make_entry(store, number, {"a/b": b"x" * 3000, "empty": b"", "n": b"%d" % number}) for number in range(3)]
    entries, new = bring(export(store, tmp_path / name, *sent), other_store)
    assert sorted(entries, key=lambda one: one.key) == sorted(sent, key=lambda one: one.key)
    assert len(new) == 3
    assert all(other_store.find(manifest.key).manifest == manifest for manifest in sent)
    assert (other_store.output(sent[2].key) / "n").read_bytes() == b"2"


def test_the_same_entries_give_the_same_bytes(tmp_path: Path, store: Store) -> None:
    one, two = make_entry(store, 1), make_entry(store, 2)
    first = export(store, tmp_path / "one.tar.gz", one, two).read_bytes()
    assert export(store, tmp_path / "two.tar.gz", two, one).read_bytes() == first


def test_content_that_entries_share_is_in_the_archive_once(tmp_path: Path, store: Store) -> None:
    sent = [make_entry(store, number, {"weights": b"w" * 50_000, "n": b"%d" % number}) for number in range(3)]
    assert export(store, tmp_path / "cache.tar", *sent).stat().st_size < 100_000


def test_an_archive_is_an_ordinary_tar_file(tmp_path: Path, store: Store) -> None:
    sent = make_entry(store)
    with tarfile.open(export(store, tmp_path / "cache.tar", sent)) as opened:
        assert opened.getnames() == [INDEX, *(f"files/{record.sha256}" for record in sent.files)]


def test_files_of_any_size_fit(tmp_path: Path) -> None:
    size = 20 << 30
    header = archive._header("files/" + "ab" * 32, size)
    assert len(header) == archive.BLOCK
    assert archive._next_member(io.BytesIO(header), "files/" + "ab" * 32, size, size) == size


def test_importing_twice_changes_nothing(tmp_path: Path, store: Store, other_store: Store) -> None:
    path = export(store, tmp_path / "cache.tar", make_entry(store))
    bring(path, other_store)
    entries, new = bring(path, other_store)
    assert len(entries) == 1
    assert new == []


def test_a_file_that_changed_is_not_exported(tmp_path: Path, store: Store) -> None:
    sent = make_entry(store)
    path = store.output(sent.key) / "engine.json"
    path.chmod(0o644)
    path.write_bytes(b"[]")
    with pytest.raises(VerificationFailed, match="recorded SHA-256"):
        export(store, tmp_path / "cache.tar", sent)
    assert sorted(tmp_path.glob("*cache.tar*")) == []


def test_programs_stay_executable(tmp_path: Path, store: Store, other_store: Store) -> None:
    sent = make_entry(store, files={"run.sh": b"#!/bin/sh\n", "copy.txt": b"#!/bin/sh\n"})
    (store.output(sent.key) / "run.sh").chmod(0o555)
    bring(export(store, tmp_path / "cache.tar", sent), other_store)
    modes = {path.name: path.stat().st_mode & 0o777 for path in other_store.output(sent.key).iterdir()}
    assert modes == {"run.sh": 0o555, "copy.txt": 0o444}


def test_what_the_disk_made_of_a_file_does_not_become_an_entry(
    tmp_path: Path, store: Store, other_store: Store
) -> None:
    path = export(store, tmp_path / "cache.tar", make_entry(store, files={"a": b"first", "b": b"second"}))

    def tamper(done: int, total: int) -> None:
        if done == total:
            [content] = (other_store.root / "tmp").rglob(sha256_bytes(b"first"))
            content.write_bytes(b"worst")

    with pytest.raises(VerificationFailed) as caught:
        import_entries(path, other_store, None, tamper)
    assert "on the disk" in caught.value.why
    assert_empty(other_store)


def test_an_interrupted_export_leaves_no_file(tmp_path: Path, store: Store) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_entries(store, [make_entry(store)], tmp_path / "cache.tar", None, stop)
    assert sorted(tmp_path.glob("*cache.tar*")) == []


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, store: Store, other_store: Store) -> None:
    path = export(store, tmp_path / "cache.tar", make_entry(store))

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_entries(path, other_store, None, stop)
    assert_empty(other_store)


@pytest.mark.parametrize("name", ["cache.tar", "cache.tar.gz"])
def test_an_archive_that_is_cut_off_anywhere_is_refused(
    tmp_path: Path, store: Store, other_store: Store, name: str
) -> None:
    path = export(store, tmp_path / name, make_entry(store, files={"x": os.urandom(3000)}))
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2 * archive.BLOCK, 397):
        path.write_bytes(whole[:size])
        with pytest.raises((VerificationFailed, UsageProblem)):
            bring(path, other_store)
    assert_empty(other_store)


@pytest.mark.parametrize("name", ["cache.tar", "cache.tar.gz"])
def test_a_flipped_bit_is_found_or_is_padding(tmp_path: Path, store: Store, other_store: Store, name: str) -> None:
    sent = make_entry(store, files={"x": os.urandom(700)})
    path = export(store, tmp_path / name, sent)
    whole = path.read_bytes()
    for position in range(0, len(whole) - 2 * archive.BLOCK, 211):
        spoiled = bytearray(whole)
        spoiled[position] ^= 1
        path.write_bytes(spoiled)
        try:
            entries, _ = bring(path, other_store)
        except TrtxError:
            continue
        assert entries == [sent]


def rewrite(path: Path, change: Callable[[Members], Members]) -> None:
    """Take an archive apart, change its members, and write it again."""
    with tarfile.open(path) as opened:
        members = [(member, (opened.extractfile(member) or io.BytesIO()).read()) for member in opened]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as made:
        for member, content in change(members):
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                member.size = len(content)
            made.addfile(member, io.BytesIO(content))


def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> Callable[[Members], Members]:
    """Add a member at the end."""

    def change(members: Members) -> Members:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        return [*members, (member, content)]

    return change


def rename(name: str) -> Callable[[Members], Members]:
    """Give the first content another name."""

    def change(members: Members) -> Members:
        return [members[0], (tarfile.TarInfo(name), members[1][1]), *members[2:]]

    return change


def instead(kind: bytes, link: str = "") -> Callable[[Members], Members]:
    """Make the first content something else than a file."""

    def change(members: Members) -> Members:
        member = tarfile.TarInfo(members[1][0].name)
        member.type, member.linkname = kind, link
        return [members[0], (member, b""), *members[2:]]

    return change


def index(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Members], Members]:
    """Change the list of entries."""

    def change(members: Members) -> Members:
        body = json.loads(members[0][1])
        edited = edit(body)
        return [(members[0][0], json.dumps(body if edited is None else edited).encode()), *members[1:]]

    return change


def manifest(**changes: Any) -> Callable[[Members], Members]:
    """Change the first manifest, with a digest that fits."""

    def edit(body: dict[str, Any]) -> None:
        row = body["entries"][0]
        row["manifest"] = alter_manifest(row["manifest"], **changes)

    return index(edit)


def grow(members: Members) -> Members:
    """A content longer than it is declared."""
    return [*members[:-1], (members[-1][0], members[-1][1] + b"x")]


def swap(members: Members) -> Members:
    return [members[0], members[2], members[1]]


def repeat(members: Members) -> Members:
    return [*members, members[-1]]


def spoil(members: Members) -> Members:
    content = bytearray(members[-1][1])
    content[0] ^= 1
    return [*members[:-1], (members[-1][0], bytes(content))]


SHA = "ab" * 32
NOT_NAMED = "members that its list does not name"
NOT_PLAIN = "not a plain file"
NO_LIST = "list of entries cannot be read"
ATTACKS: dict[str, tuple[Callable[[Members], Members], str]] = {
    "a member that climbs out": (add("../../etc/cron.d/x", content=b"x"), NOT_NAMED),
    "an absolute member": (add("/etc/cron.d/x", content=b"x"), NOT_NAMED),
    "a member that climbs out in the place of another": (rename("../../etc/cron.d/x"), "does not belong there"),
    "an absolute member in the place of another": (rename("/etc/cron.d/x"), "does not belong there"),
    "a symbolic link": (instead(tarfile.SYMTYPE, "/etc/passwd"), NOT_PLAIN),
    "a hard link": (instead(tarfile.LNKTYPE, "../../secret"), NOT_PLAIN),
    "a link at the end": (add("files/x", tarfile.SYMTYPE, "/"), NOT_NAMED),
    "a device": (instead(tarfile.CHRTYPE), NOT_PLAIN),
    "a block device": (instead(tarfile.BLKTYPE), NOT_PLAIN),
    "a pipe": (instead(tarfile.FIFOTYPE), NOT_PLAIN),
    "a folder": (instead(tarfile.DIRTYPE), NOT_PLAIN),
    "a contiguous file": (instead(tarfile.CONTTYPE), NOT_PLAIN),
    "a long name": (rename("x" * 5000), NOT_PLAIN),
    "a member twice": (repeat, NOT_NAMED),
    "members in another order": (swap, "does not belong there"),
    "a member left out": (lambda members: members[:-1], "no member of a tar archive"),
    "a member more": (add("files/" + SHA, content=b"x"), NOT_NAMED),
    "a longer file": (grow, "are declared"),
    "another content": (spoil, "does not have that SHA-256"),
    "a path that climbs out": (manifest(files=[["../../../x", 2, SHA]]), "leaves its folder"),
    "an absolute path": (manifest(files=[["/tmp/x", 2, SHA]]), "is absolute"),
    "a path twice": (manifest(files=[["x", 2, SHA], ["x", 2, SHA]]), "is there twice"),
    "a file in a file": (manifest(files=[["x", 2, SHA], ["x/y", 2, SHA]]), "both a file and a folder"),
    "a negative size": (manifest(files=[["x", -5, SHA]]), "no valid size"),
    "a size in words": (manifest(files=[["x", "2", SHA]]), "no valid size"),
    "one content of two sizes": (manifest(files=[["x", 2, SHA], ["y", 3, SHA]]), "different sizes"),
    "another step's key": (manifest(factors={"stage": "other"}), "not the SHA-256 of its factors"),
    "another key": (index(lambda body: body["entries"][0].update(key=SHA)), "is of the key"),
    "an entry twice": (index(lambda body: body["entries"].append(body["entries"][0])), "lists an entry twice"),
    "a manifest without a digest": (index(lambda body: body["entries"][0].update(manifest="{}")), "not a whole"),
    "a time in words": (manifest(provenance={"started": "soon"}), "is no time"),
    "a time after all calendars": (manifest(provenance={"started": 1e300}), "is no time"),
    "a duration in words": (manifest(provenance={"duration_s": "long"}), "is no time"),
    "a host that colours terminals": (manifest(provenance={"host": "\x1b[31m"}), "not a plain text"),
    "a path that colours terminals": (manifest(files=[["\x9b31m", 2, SHA]]), "control characters"),
    "a manifest that is no text": (index(lambda body: body["entries"][0].update(manifest={})), NO_LIST),
    "no entries": (index(lambda _: {"schema": archive.SCHEMA}), NO_LIST),
    "another schema": (index(lambda body: body.update(schema="trtx.export/v9")), "its schema is"),
    "a list that is no list": (index(lambda _: []), NO_LIST),
    "nesting without end": (lambda members: [(members[0][0], b"[" * 100_000), *members[1:]], NO_LIST),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_archive_is_refused_whole(tmp_path: Path, store: Store, other_store: Store, attack: str) -> None:
    path = export(store, tmp_path / "cache.tar", make_entry(store))
    change, why = ATTACKS[attack]
    rewrite(path, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(VerificationFailed) as caught:
        bring(path, other_store)
    assert "nothing was imported" in caught.value.what
    assert why in caught.value.why
    assert_empty(other_store)
    assert {found.name for found in set(tmp_path.rglob("*")) - set(before)} <= {"CACHEDIR.TAG"}


def test_an_honest_archive_survives_being_taken_apart(tmp_path: Path, store: Store, other_store: Store) -> None:
    path = export(store, tmp_path / "cache.tar", sent := make_entry(store))
    rewrite(path, lambda members: members)
    assert bring(path, other_store)[0] == [sent]


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"\x1f\x8bgarbage", b"PK\x03\x04" * 300, b"<html></html>" * 99])
def test_a_file_of_another_kind_is_no_export(tmp_path: Path, other_store: Store, content: bytes) -> None:
    path = tmp_path / "cache.tar"
    path.write_bytes(content)
    with pytest.raises((UsageProblem, VerificationFailed)):
        bring(path, other_store)
    assert_empty(other_store)


def test_a_missing_file_is_a_usage_problem(tmp_path: Path, other_store: Store) -> None:
    with pytest.raises(UsageProblem, match="cannot read"):
        bring(tmp_path / "none.tar", other_store)


def test_a_bomb_in_the_list_is_not_unpacked(
    tmp_path: Path, other_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_INDEX_BYTES", 1 << 20)
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(archive._header(INDEX, 1 << 30) + bytes(8 << 20))
    with pytest.raises(UsageProblem) as caught:
        bring(path, other_store)
    assert "are the most" in caught.value.why


def test_a_manifest_that_is_too_large_is_not_parsed(
    tmp_path: Path, store: Store, other_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(store, tmp_path / "cache.tar", sent := make_entry(store))
    rewrite(path, index(lambda body: body["entries"][0].update(manifest="[" * (9 << 20))))
    with pytest.raises(VerificationFailed) as caught:
        bring(path, other_store)
    assert caught.value.why == "its manifest is larger than 8 MiB"
    assert_empty(other_store)
    monkeypatch.setattr(archive, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(UsageProblem, match="too many files for an archive"):
        export(store, tmp_path / "more.tar", sent)


def test_a_bomb_in_the_files_is_refused_before_it_is_unpacked(tmp_path: Path, store: Store, other_store: Store) -> None:
    path = export(store, tmp_path / "cache.tar", make_entry(store))
    rewrite(path, manifest(files=[["x", 1 << 50, SHA]]))
    with pytest.raises(EnvironmentProblem, match="cannot hold"):
        bring(path, other_store)
    assert_empty(other_store)


def test_more_entries_than_any_cache_has_are_refused(
    tmp_path: Path, store: Store, other_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(store, tmp_path / "cache.tar", make_entry(store, 1), make_entry(store, 2))
    monkeypatch.setattr(archive, "MAX_ENTRIES", 1)
    with pytest.raises(VerificationFailed) as caught:
        bring(path, other_store)
    assert "more than 1 entries" in caught.value.why
    monkeypatch.undo()
    monkeypatch.setattr(archive, "MAX_FILES", 1)
    with pytest.raises(VerificationFailed) as caught:
        bring(path, other_store)
    assert "more than 1 files" in caught.value.why


def test_only_signed_archives_are_taken_where_signatures_are_asked_for(tmp_path: Path, store: Store) -> None:
    ours, theirs = (make_key_file(tmp_path / name) for name in ("ours.pem", "theirs.pem"))
    sent = make_entry(store)
    for name, signer, keyring, accepted in (
        ("unsigned", None, Keyring({"ci": ours}), False),
        ("other", load_signer(tmp_path / "theirs.pem", None, "theirs"), Keyring({"ci": ours}), False),
        ("signed", load_signer(tmp_path / "ours.pem", None, "ours"), Keyring({"x": theirs, "ci": ours}), True),
    ):
        path, fresh = tmp_path / f"{name}.tar", make_store(tmp_path / f"{name}-cache")
        export_entries(store, [sent], path, signer, ignore_progress)
        if accepted:
            assert bring(path, fresh, keyring)[0] == [sent]
        else:
            with pytest.raises(VerificationFailed) as caught:
                bring(path, fresh, keyring)
            assert "signed" in caught.value.why
            assert_empty(fresh)
