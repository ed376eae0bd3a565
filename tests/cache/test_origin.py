"""A machine signs what it made or what a trusted key vouches for, and never makes the bytes of strangers trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from support.remotes import Place, ignore_progress, make_entry, make_store, push

from trtx.cache.archive import export_entries, import_entries
from trtx.cache.foreign import EntryRefused
from trtx.cache.manifest import Manifest
from trtx.cache.origin import EntryUntrusted, read_origin, vouch
from trtx.cache.remote import RemoteSpec
from trtx.cache.remote_push import WritableRemote
from trtx.cache.signing import Keyring, Signer, load_signer, make_key_file
from trtx.cache.store import ORIGIN, Store
from trtx.errors import VerificationFailed

MakeKey = Callable[[str], Signer]


@dataclass(frozen=True)
class Site:
    """A machine: its cache, the keys it trusts and the key it signs with."""

    store: Store
    keyring: Keyring
    signer: Signer | None = None

    def remote(self, place: Place, trust: Literal["digest", "signed"]) -> WritableRemote:
        return WritableRemote(RemoteSpec("shared", place.url, True, trust), self.keyring, self.signer)

    def pull(self, place: Place, key: str, trust: Literal["digest", "signed"]) -> Manifest:
        remote = self.remote(place, trust)
        offer = remote.find(key)
        assert offer is not None
        return remote.pull(offer, self.store, ignore_progress, threading.Event())

    def export(self, manifest: Manifest, path: Path) -> dict[str, str]:
        return export_entries(self.store, [manifest], path, self.signer, ignore_progress, self.keyring)

    def bring(self, path: Path, *, signed: bool) -> None:
        import_entries(path, self.store, self.keyring if signed else None, ignore_progress)


@pytest.fixture
def make_signer(tmp_path: Path) -> MakeKey:
    def make(name: str) -> Signer:
        make_key_file(tmp_path / f"{name}.pem")
        return load_signer(tmp_path / f"{name}.pem", None, name)

    return make


@pytest.fixture
def ours(make_signer: MakeKey) -> Signer:
    return make_signer("ours")


@pytest.fixture
def site(tmp_path: Path, ours: Signer) -> Site:
    """A machine that signs."""
    return Site(make_store(tmp_path / "site"), Keyring({"ours": ours.public_key}), ours)


@pytest.fixture
def client(tmp_path: Path, ours: Signer) -> Site:
    """A machine that takes what the first one signed."""
    return Site(make_store(tmp_path / "client"), Keyring({"ours": ours.public_key}))


@pytest.fixture
def stranger(tmp_path: Path) -> Site:
    return Site(make_store(tmp_path / "stranger"), Keyring({}))


@pytest.fixture
def open_place(tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/open")


@pytest.fixture
def signed_place(tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/signed")


def test_what_came_unsigned_does_not_reach_a_remote_for_signed_entries(
    site: Site, client: Site, stranger: Site, open_place: Place, signed_place: Place
) -> None:
    sent = make_entry(stranger.store)
    push(stranger.remote(open_place, "digest"), sent, stranger.store)
    taken = site.pull(open_place, sent.key, "digest")
    with pytest.raises(EntryUntrusted, match="must be signed; it came from remote shared, and it is not signed"):
        push(site.remote(signed_place, "signed"), taken, site.store)
    assert client.remote(signed_place, "signed").find(sent.key) is None
    push(site.remote(signed_place, "digest"), taken, site.store)
    with pytest.raises(EntryRefused, match="not signed"):
        client.remote(signed_place, "signed").find(sent.key)


def test_what_was_imported_unsigned_is_exported_unsigned(
    tmp_path: Path, site: Site, client: Site, stranger: Site
) -> None:
    sent = make_entry(stranger.store)
    stranger.export(sent, tmp_path / "in.tar")
    site.bring(tmp_path / "in.tar", signed=False)
    assert "archive in.tar" in site.export(sent, tmp_path / "out.tar")[sent.key]
    with pytest.raises(VerificationFailed) as caught:
        client.bring(tmp_path / "out.tar", signed=True)
    assert "not signed" in caught.value.why


def test_what_came_signed_keeps_its_signature(
    site: Site, client: Site, make_signer: MakeKey, tmp_path: Path, open_place: Place, signed_place: Place
) -> None:
    vendor = make_signer("vendor")
    keys = Keyring({"vendor": vendor.public_key})
    maker, reader = (Site(make_store(tmp_path / name), keys, vendor) for name in ("maker", "reader"))
    sent = make_entry(maker.store)
    push(maker.remote(open_place, "signed"), sent, maker.store)
    trusting = Site(site.store, Keyring({"vendor": vendor.public_key}), site.signer)
    taken = trusting.pull(open_place, sent.key, "signed")
    push(trusting.remote(signed_place, "signed"), taken, trusting.store)
    for each in (reader, client):  # Who trusts the vendor, and who trusts this site, both find what they ask for.
        assert each.pull(signed_place, sent.key, "signed") == sent
    trusting.export(taken, tmp_path / "out.tar")
    Site(make_store(tmp_path / "last"), keys).bring(tmp_path / "out.tar", signed=True)


def test_a_signature_of_a_key_that_is_not_trusted_goes_along_and_gets_no_other(
    site: Site, client: Site, make_signer: MakeKey, tmp_path: Path, open_place: Place, signed_place: Place
) -> None:
    vendor = make_signer("vendor")
    maker = Site(make_store(tmp_path / "maker"), Keyring({"vendor": vendor.public_key}), vendor)
    sent = make_entry(maker.store)
    push(maker.remote(open_place, "digest"), sent, maker.store)
    taken = site.pull(open_place, sent.key, "digest")
    push(site.remote(signed_place, "digest"), taken, site.store)
    with pytest.raises(EntryRefused, match="not signed by a trusted key"):
        client.remote(signed_place, "signed").find(sent.key)
    offer = maker.remote(signed_place, "signed").find(sent.key)
    assert offer is not None and offer.signer == "vendor"


@pytest.mark.parametrize("how", ["removed", "quarantined"])
def test_an_entry_that_was_made_again_here_may_be_signed(
    site: Site, client: Site, stranger: Site, open_place: Place, signed_place: Place, how: str
) -> None:
    sent = make_entry(stranger.store)
    push(stranger.remote(open_place, "digest"), sent, stranger.store)
    site.pull(open_place, sent.key, "digest")
    if how == "removed":
        site.store.remove(sent.key)
    else:
        path = site.store.output(sent.key) / "engine.json"
        path.chmod(0o644)
        path.write_bytes(b"[]")
        assert site.store.quarantine(sent.key) is not None
    made = make_entry(site.store)
    assert read_origin(site.store, sent.key) is None
    assert push(site.remote(signed_place, "signed"), made, site.store)
    assert client.pull(signed_place, sent.key, "signed") == made


def test_what_was_made_here_stays_so_when_it_is_imported_as_well(tmp_path: Path, site: Site, stranger: Site) -> None:
    stranger.export(make_entry(stranger.store), tmp_path / "in.tar")
    made = make_entry(site.store)
    site.bring(tmp_path / "in.tar", signed=False)
    assert site.export(made, tmp_path / "out.tar") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"source": "x"}', "[" * 100_000])
def test_a_spoiled_note_of_the_origin_never_makes_an_entry_one_of_this_machine(site: Site, text: str) -> None:
    made = make_entry(site.store)
    folder = site.store.entry(made.key)
    folder.chmod(0o755)
    (folder / ORIGIN).write_text(text)
    assert vouch(site.store, made, site.keyring, site.signer).signatures == ()
    assert "an unknown place" in vouch(site.store, made, site.keyring, site.signer).doubt


def test_the_manifest_of_an_entry_that_was_replaced_meanwhile_is_not_signed(
    tmp_path: Path, site: Site, stranger: Site
) -> None:
    foreign = make_entry(stranger.store, files={"x": b"other"})
    make_entry(site.store)
    with pytest.raises(EntryRefused, match="replaced meanwhile"):
        vouch(site.store, foreign, site.keyring, site.signer)
    with pytest.raises(VerificationFailed, match="cannot be exported"):
        site.export(foreign, tmp_path / "out.tar")
