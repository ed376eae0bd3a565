"""The verbs that carry entries: push, pull, export, import and keygen, for people and for tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.remotes import CREDENTIALS, Place, closed_port, make_entry, make_store, writable

from trtx.cache.manifest import Manifest
from trtx.cache.remote import blob_name
from trtx.cache.store import Store
from trtx.cli.main import main
from trtx.plan.lock import SCHEMA as LOCK_SCHEMA
from trtx.plan.lock import Lock, write_lock
from trtx.plan.site import PULL_REQUEST_VARIABLES


class Trtx:
    """Runs `trtx cache …` in this process, on a machine that `at` chooses."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self._folder = tmp_path
        self.err = ""

    def at(self, store: Store) -> Trtx:
        self._monkeypatch.setenv("TRTX_CACHE_DIR", str(store.root))
        return self

    def site(self, text: str) -> None:
        """Write the site's configuration."""
        path = self._folder / "config.yaml"
        path.write_text(text)
        self._monkeypatch.setenv("TRTX_CONFIG", str(path))
        self._monkeypatch.delenv("TRTX_CACHE_REMOTES", raising=False)

    def remotes(self, text: str) -> None:
        self._monkeypatch.setenv("TRTX_CACHE_REMOTES", text)

    def __call__(self, *words: object, code: int = 0) -> str:
        assert main(["cache", *map(str, words)]) == code, self._capsys.readouterr().err
        out, self.err = self._capsys.readouterr()
        return out

    def json(self, verb: str, *words: object, code: int = 0) -> Any:
        body = json.loads(self(verb, *words, "-o", "json", code=code))
        assert body["schema"] == f"trtx.cache.{verb}/v1"
        return body


@pytest.fixture
def trtx(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Trtx:
    for name in ("TRTX_OFFLINE", "TRTX_CONFIG", *(name for name, _ in PULL_REQUEST_VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return Trtx(tmp_path, capsys, monkeypatch)


@pytest.fixture
def share(tmp_path: Path, trtx: Trtx) -> Place:
    trtx.remotes(f"file://{tmp_path}/share;name=share;mode=read-write")
    return Place(f"file://{tmp_path}/share")


@pytest.fixture
def entries(store: Store) -> list[Manifest]:
    return [make_entry(store, number) for number in range(3)]


def test_push_and_pull_carry_an_entry(
    trtx: Trtx, share: Place, store: Store, other_store: Store, entries: list[Manifest]
) -> None:
    keys = sorted(manifest.key for manifest in entries)
    pushed = trtx.at(store).json("push")
    assert pushed["remotes"] == {"share": {"sent": keys, "there": [], "skipped": {}, "failed": {}}}
    assert trtx.json("push")["remotes"]["share"]["there"] == keys
    pulled = trtx.at(other_store).json("pull", keys[0], keys[1])
    assert pulled["pulled"] == dict.fromkeys(keys[:2], "share")
    assert trtx.json("pull", keys[0])["cached"] == [keys[0]]
    assert sorted(manifest.key for manifest in other_store.manifests()) == keys[:2]


def test_push_takes_steps_and_beginnings_of_keys(
    trtx: Trtx, share: Place, store: Store, entries: list[Manifest]
) -> None:
    assert trtx.at(store).json("push", "build/1")["remotes"]["share"]["sent"] == [entries[1].key]
    assert trtx.json("push", entries[2].key[:20])["remotes"]["share"]["sent"] == [entries[2].key]
    assert len(trtx.json("push", "build/*")["remotes"]["share"]["there"]) == 2


def test_a_lock_names_what_to_carry(
    tmp_path: Path, trtx: Trtx, share: Place, store: Store, other_store: Store, entries: list[Manifest]
) -> None:
    lock = tmp_path / "recipe.lock.yaml"
    models = {"demo://m": {"identity": "x", "files": {"w": {"bytes": 1, "sha256": "cd" * 32}}}}
    steps = {"build/cpu": entries[0].key, "download/model": "ab" * 32}
    write_lock(lock, Lock.model_validate({"schema": LOCK_SCHEMA, "entries": steps, "models": models}))
    assert trtx.at(store).json("push", "--lock", lock)["remotes"]["share"]["sent"] == [entries[0].key]
    pulled = trtx.at(other_store).json("pull", "--lock", lock)
    assert pulled["pulled"] == {entries[0].key: "share"}
    assert pulled["missing"] == ["ab" * 32]
    assert trtx.at(store).json("export", tmp_path / "x.tar", "--lock", lock)["keys"] == [entries[0].key]
    trtx("pull", "--lock", tmp_path / "none", code=2)


def test_an_entry_that_no_remote_has_is_an_error(trtx: Trtx, share: Place, store: Store) -> None:
    store.entry("ab" * 32)
    trtx.at(store).remotes(f"{share.url};mode=read-write")
    trtx("pull", "ab" * 32, code=6)
    assert f"no remote has the entry {'ab' * 32}" in trtx.err


def test_a_spoiled_entry_is_refused(
    trtx: Trtx, share: Place, store: Store, other_store: Store, entries: list[Manifest]
) -> None:
    trtx.at(store)("push")
    share.blobs().write(blob_name(entries[0].files[0].sha256), b"no")
    told = trtx.at(other_store).json("pull", entries[0].key, code=8)
    assert "damaged" in told["refused"][entries[0].key]
    assert told["error"]["exit_code"] == 8
    assert "damaged" in trtx.err
    assert list(other_store.manifests()) == []


def test_a_remote_that_is_down_is_an_error_of_push_and_a_warning_of_pull(
    trtx: Trtx, store: Store, entries: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    trtx.at(store).remotes(f"s3://bucket/x;name=down;mode=read-write;endpoint=http://127.0.0.1:{closed_port()}")
    told = trtx.json("push", "build/0", code=6)
    assert list(told["remotes"]["down"]["failed"]) == [entries[0].key]
    assert "could not be put on remote down" in trtx.err
    trtx("pull", "ab" * 32, code=6)
    assert "remote down (s3://bucket/x) was skipped" in trtx.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["pull"], "nothing to pull is named"),
        (["pull", "abc"], "'abc' is no key"),
        (["push", "--remote", "shere"], "did you mean 'share'"),
        (["push", "nonsense/*"], "no entry is of a step"),
    ],
)
def test_wrong_words_are_usage_problems(
    trtx: Trtx, share: Place, store: Store, entries: list[Manifest], words: list[str], what: str
) -> None:
    trtx.at(store)(*words, code=2)
    assert what in trtx.err


def test_without_a_remote_the_error_says_where_to_name_one(trtx: Trtx, store: Store) -> None:
    trtx.at(store)("push", code=2)
    assert "trtx/config.yaml" in trtx.err
    assert "TRTX_CACHE_REMOTES" in trtx.err


def test_a_pull_request_cannot_push(
    trtx: Trtx, share: Place, store: Store, entries: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_EVENT_NAME", "pull_request")
    trtx.at(store)("push", code=2)
    assert "GITHUB_EVENT_NAME says this is a pull-request job" in trtx.err


def test_a_corrupt_entry_is_not_carried(
    tmp_path: Path, trtx: Trtx, share: Place, store: Store, entries: list[Manifest]
) -> None:
    path = store.output(entries[0].key) / "engine.json"
    path.chmod(0o644)
    path.write_bytes(b"[]")
    trtx.at(store)("push", code=8)
    trtx("export", tmp_path / "x.tar", code=8)
    assert not (tmp_path / "x.tar").exists()


def test_export_and_import_carry_entries(
    tmp_path: Path, trtx: Trtx, store: Store, other_store: Store, entries: list[Manifest]
) -> None:
    file = tmp_path / "cache.tar.gz"
    exported = trtx.at(store).json("export", file, "build/0", "build/1")
    assert exported["keys"] == [entries[0].key, entries[1].key]
    assert exported["bytes"] == file.stat().st_size
    imported = trtx.at(other_store).json("import", file)
    assert sorted(imported["new"]) == sorted(exported["keys"])
    assert trtx.json("import", file)["new"] == []
    trtx("import", file)
    assert "0 entries imported, 2 were in the cache" in trtx.err


def test_an_empty_cache_has_nothing_to_export(tmp_path: Path, trtx: Trtx, store: Store) -> None:
    trtx.at(store)("export", tmp_path / "x.tar", code=2)


def test_a_file_that_is_no_export_is_refused(tmp_path: Path, trtx: Trtx, store: Store) -> None:
    (tmp_path / "x.tar").write_text("no archive" * 1000)
    trtx.at(store)("import", tmp_path / "x.tar", code=2)
    assert "is not an export of a trtx cache" in trtx.err


def test_keys_sign_what_is_pushed_and_exported(
    tmp_path: Path, trtx: Trtx, store: Store, entries: list[Manifest]
) -> None:
    made = trtx.json("keygen", tmp_path / "signing.pem")
    public = trtx("keygen", tmp_path / "other.pem").strip()
    secret = "".join((tmp_path / "signing.pem").read_text().splitlines()[1:-1])
    file = tmp_path / "x.tar"
    site = (
        "cache:\n"
        "  remotes:\n"
        "    - {{name: share, url: 'file://{folder}/share', mode: read-write, trust: signed}}\n"
        "  trusted_keys: {{ci: '{key}'}}\n"
    )
    signing = f"  sign: {{private_key: '{tmp_path}/signing.pem'}}\n"
    trtx.site(site.format(folder=tmp_path, key=made["public_key"]) + signing)
    assert trtx.at(store).json("export", file)["signed"]
    trtx("push")
    assert secret not in trtx.err
    assert all(secret not in path.read_text(errors="ignore") for path in [file, *_files(tmp_path / "share")])
    trusting, doubting = make_store(tmp_path / "trusting"), make_store(tmp_path / "doubting")
    trtx.at(trusting)("import", file, "--trust", "signed")
    trtx("pull", entries[0].key)
    trtx.site(site.format(folder=tmp_path, key=public) + signing)  # This site's own key need not be named.
    trtx.at(make_store(tmp_path / "own"))("import", file, "--trust", "signed")
    trtx.site(site.format(folder=tmp_path, key=public))
    trtx.at(doubting)("import", file, "--trust", "signed", code=8)
    assert "not signed by a trusted key" in trtx.err
    trtx("pull", entries[0].key, code=8)
    assert list(doubting.manifests()) == []


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_several_remotes_get_what_is_pushed_or_only_the_named_one(
    tmp_path: Path, trtx: Trtx, store: Store, entries: list[Manifest]
) -> None:
    trtx.at(store).remotes(
        f"file://{tmp_path}/a;name=a;mode=read-write,file://{tmp_path}/b;name=b;mode=read-write,file://{tmp_path}/c"
    )
    assert list(trtx.json("push", "build/0", "--remote", "b")["remotes"]) == ["b"]
    assert list(trtx.json("push", "build/0")["remotes"]) == ["a", "b"]
    assert writable(f"file://{tmp_path}/a").find(entries[0].key) is not None


def test_what_came_unsigned_is_skipped_by_name_and_not_signed(
    tmp_path: Path, trtx: Trtx, store: Store, other_store: Store, entries: list[Manifest]
) -> None:
    trtx.at(store)("export", tmp_path / "in.tar", "build/0")
    trtx("keygen", tmp_path / "signing.pem")
    trtx.site(
        "cache:\n"
        f"  remotes: [{{name: share, url: 'file://{tmp_path}/share', mode: read-write, trust: signed}}]\n"
        f"  sign: {{private_key: '{tmp_path}/signing.pem'}}\n"
    )
    trtx.at(other_store)("import", tmp_path / "in.tar")
    made = make_entry(other_store, 7)
    pushed = trtx.json("push")["remotes"]["share"]
    assert pushed["sent"] == [made.key]
    assert list(pushed["skipped"]) == [entries[0].key]
    assert "was not put on remote share: its entries must be signed; it came from archive in.tar" in trtx.err
    exported = trtx.json("export", tmp_path / "out.tar")
    assert not exported["signed"]
    assert exported["unsigned"] == [entries[0].key]
    assert "was not signed: it came from archive in.tar" in trtx.err
