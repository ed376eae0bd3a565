"""The store publishes whole entries, notices every alteration, and leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.steps import corrupt

from trtx.cache.inspection import Inspection, inspect
from trtx.cache.manifest import Manifest, ManifestCorrupt, load_manifest
from trtx.cache.store import Store, remove_tree
from trtx.errors import EnvironmentProblem, StepFailed

KEY = "ab" * 32


def draft(key: str = KEY) -> Manifest:
    return Manifest(key, "build/cpu/fp32", "build", {"stage": "build"}, (), {"duration_s": 1.5}, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    made.prepare()
    return made


def publish(store: Store, content: bytes = b"engine", key: str = KEY) -> Manifest:
    with store.stage(key) as folder:
        (folder / "output" / "programs").mkdir()
        (folder / "output" / "programs" / "decode.pt2").write_bytes(content)
        (folder / "output" / "engine.json").write_text("{}")
        return store.publish(folder, draft(key))


def test_a_published_entry_is_found_with_its_files_and_digests(store: Store) -> None:
    publish(store)
    manifest = store.find(KEY).manifest
    assert manifest is not None
    assert [record.path for record in manifest.files] == ["engine.json", "programs/decode.pt2"]
    assert (store.output(KEY) / "programs/decode.pt2").read_bytes() == b"engine"


def test_an_entry_is_read_only(store: Store) -> None:
    publish(store)
    for path in [store.entry(KEY), *store.entry(KEY).rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o222, path


@pytest.mark.parametrize("mark", ["CACHEDIR.TAG", "layout"])
def test_what_is_called_tmp_elsewhere_is_not_cleaned(store: Store, mark: str) -> None:
    (store.root / "tmp" / "trash-1").mkdir()
    (store.root / mark).unlink()
    assert store.clean_staging() == 0
    assert (store.root / "tmp" / "trash-1").exists()


def test_an_old_entry_that_is_looked_at_as_a_suspect_is_no_leftover(store: Store) -> None:
    suspect = store.root / "tmp" / "suspect-1"
    suspect.mkdir()
    os.utime(suspect, (1, 1))
    assert store.clean_staging() == 0


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_what_is_no_folder_does_not_stand_in_the_way_of_an_entry(store: Store, kind: str) -> None:
    store.entry(KEY).parent.mkdir()
    if kind == "file":
        store.entry(KEY).write_text("x")
    else:
        store.entry(KEY).symlink_to("nowhere")
    assert store.find(KEY).fault
    publish(store)
    assert store.find(KEY).manifest is not None
    assert len(list((store.root / "quarantine").iterdir())) == 1


def test_an_absent_key_is_neither_found_nor_faulty(store: Store) -> None:
    found = store.find("cd" * 32)
    assert found.manifest is None
    assert found.fault is None


def test_nothing_is_visible_before_publishing_and_staging_is_removed_after(store: Store) -> None:
    with pytest.raises(RuntimeError), store.stage(KEY) as folder:
        (folder / "output" / "half").write_text("half")
        assert store.find(KEY).manifest is None
        raise RuntimeError
    assert list((store.root / "tmp").iterdir()) == []
    assert not store.entry(KEY).exists()


@pytest.mark.parametrize("path", ["output/engine.json", "output/programs/decode.pt2"])
def test_a_flipped_bit_in_any_file_is_found(store: Store, path: str) -> None:
    publish(store)
    file = store.entry(KEY) / path
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert "SHA-256" in (store.find(KEY).fault or "")


def test_a_flipped_bit_under_the_same_size_and_mtime_is_found(store: Store) -> None:
    publish(store)
    file = store.output(KEY) / "engine.json"
    before = file.stat()
    file.chmod(0o644)
    file.write_text("[]")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "SHA-256" in (store.find(KEY).fault or "")


@pytest.mark.parametrize("position", range(0, 400, 37))
def test_a_flipped_bit_in_the_manifest_is_found(store: Store, position: int) -> None:
    publish(store)
    file = store.entry(KEY) / "manifest.json"
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 4
    with pytest.raises(ManifestCorrupt):
        load_manifest(bytes(content))


def test_a_truncated_manifest_is_found(store: Store) -> None:
    publish(store)
    file = store.entry(KEY) / "manifest.json"
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[: len(content) // 2])
    assert "manifest.json" in (store.find(KEY).fault or "")


def test_a_missing_file_a_foreign_file_and_a_missing_manifest_are_faults(store: Store) -> None:
    publish(store)
    store.output(KEY).chmod(0o755)
    (store.output(KEY) / "extra").write_text("x")
    assert store.find(KEY).fault == "extra does not belong to the entry"
    (store.output(KEY) / "extra").unlink()
    (store.output(KEY) / "engine.json").unlink()
    assert "engine.json" in (store.find(KEY).fault or "")
    store.entry(KEY).chmod(0o755)
    (store.entry(KEY) / "manifest.json").unlink()
    assert store.find(KEY).fault == "manifest.json is missing"


def test_an_unchanged_file_is_not_read_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    read: list[Path] = []
    monkeypatch.setattr("trtx.cache.digests.hash_file", lambda path, _advance: read.append(path) or "")
    assert store.find(KEY).manifest is not None
    assert read == []


@pytest.mark.parametrize(
    "text", ["{", "7", '{"engine.json": 5}', '{"engine.json": [1]}', '{"engine.json": [[], "", 0, 0]}', "[" * 100_000]
)
def test_a_memo_that_says_nonsense_only_costs_reading_again(store: Store, text: str) -> None:
    publish(store)
    store.memo.path(KEY).write_text(text)
    store.accept_links(KEY)
    assert store.find(KEY).manifest is not None


def test_a_manifest_that_nests_without_end_is_a_fault(store: Store) -> None:
    publish(store)
    path = store.entry(KEY) / "manifest.json"
    path.chmod(0o644)
    path.write_text("[" * 100_000)
    assert "manifest.json" in str(store.find(KEY).fault)
    assert store.peek(KEY) is None


def test_a_lost_memo_only_costs_reading_again(store: Store) -> None:
    publish(store)
    remove_tree(store.root / "memo")
    assert store.find(KEY).manifest is not None


def test_the_first_of_two_publishers_wins_and_the_second_adopts(store: Store) -> None:
    first = publish(store, b"first")
    assert publish(store, b"second") == first
    assert (store.output(KEY) / "programs/decode.pt2").read_bytes() == b"first"


def test_a_publisher_replaces_a_corrupt_entry(store: Store) -> None:
    publish(store, b"first")
    file = store.output(KEY) / "programs/decode.pt2"
    file.chmod(0o644)
    file.write_bytes(b"fir5t")
    publish(store, b"again")
    assert store.find(KEY).manifest is not None
    assert (store.output(KEY) / "programs/decode.pt2").read_bytes() == b"again"
    assert len(list((store.root / "quarantine").iterdir())) == 1


def test_an_empty_output_is_not_published(store: Store) -> None:
    with pytest.raises(StepFailed, match="wrote no files"), store.stage(KEY) as folder:
        store.publish(folder, draft())
    assert not store.entry(KEY).exists()


def test_a_link_in_the_output_is_not_published(store: Store) -> None:
    with pytest.raises(StepFailed, match="not a plain file"), store.stage(KEY) as folder:
        (folder / "output" / "link").symlink_to("/etc/passwd")
        store.publish(folder, draft())
    assert not store.entry(KEY).exists()


def test_staging_of_a_killed_process_is_cleaned_and_that_of_a_live_one_kept(store: Store) -> None:
    script = (
        "import os, sys; from pathlib import Path; from trtx.cache.store import Store\n"
        "with Store(Path(sys.argv[1])).stage('ef' * 32): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(store.root)], check=False)
    assert len(list((store.root / "tmp").iterdir())) == 1
    with store.stage(KEY) as mine:
        assert store.clean_staging() == 1
        assert list((store.root / "tmp").iterdir()) == [mine]


def test_a_manifest_survives_its_own_text(store: Store) -> None:
    manifest = publish(store)
    assert load_manifest(manifest.dump().encode()) == manifest
    assert json.loads(manifest.dump())["schema"] == "trtx.entry/v1"


def test_a_full_disk_is_one_message_and_leaves_no_entry(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        store = Store(tmp_path)
        store.prepare()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "ballast").write_bytes(b"x" * (64 << 10))
        with pytest.raises(EnvironmentProblem, match="cannot write") as caught:
            publish(store)
        assert caught.value.why == "the disk is full"
        assert not store.entry(KEY).exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_linked_entry_is_not_read_again_and_a_changed_one_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    os.link(store.output(KEY) / "engine.json", store.root / "tmp" / "link")
    store.accept_links(KEY)
    read: list[Path] = []
    monkeypatch.setattr("trtx.cache.digests.hash_file", lambda path, _advance: read.append(path) or "")
    assert store.find(KEY).manifest is not None
    assert read == []
    monkeypatch.undo()
    corrupt(store.output(KEY) / "engine.json")
    store.accept_links(KEY)
    assert "SHA-256" in (store.find(KEY).fault or "")


def test_all_manifests_are_listed_without_their_files_being_read_and_unreadable_ones_are_skipped(store: Store) -> None:
    for key in ("ab" * 32, "cd" * 32, "ef" * 32):
        publish(store, key=key)
    corrupt(store.entry("cd" * 32) / "manifest.json")
    (store.entry("ef" * 32) / "manifest.json").chmod(0o644)
    (store.entry("ef" * 32) / "manifest.json").write_bytes(b"{")
    assert {manifest.key for manifest in store.manifests()} <= {"ab" * 32, "cd" * 32}
    assert KEY in [manifest.key for manifest in store.manifests("build")]
    assert list(store.manifests("package")) == []


def replace_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another process quarantine the entry and publish a good one just before this one moves it."""

    def act(folder: Path) -> None:
        monkeypatch.undo()
        store.quarantine(KEY)
        publish(store, b"again")
        folder.chmod(0o755)

    monkeypatch.setattr("trtx.cache.store.make_movable", act)


def test_a_good_entry_that_took_the_place_of_a_corrupt_one_is_put_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, b"first")
    corrupt(store.output(KEY) / "engine.json")
    replace_while(store, monkeypatch)
    assert store.quarantine(KEY) is None
    assert store.find(KEY).manifest is not None
    assert (store.output(KEY) / "programs/decode.pt2").read_bytes() == b"again"
    assert stat.S_IMODE(store.entry(KEY).stat().st_mode) == 0o555
    assert len(list((store.root / "quarantine").iterdir())) == 1


def test_an_intact_entry_is_never_quarantined(store: Store) -> None:
    publish(store)
    assert store.quarantine(KEY) is None
    assert store.quarantine("cd" * 32) is None
    assert store.find(KEY).manifest is not None


def test_an_entry_that_is_away_for_a_moment_is_not_taken_to_be_corrupt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store)
    looks = 0

    def look(entry: Path, key: str, memo: dict[str, list[int]]) -> Inspection:
        nonlocal looks
        looks += 1
        seen = inspect(entry, key, memo)
        return replace(seen, fault="manifest.json is missing") if looks == 1 else seen

    monkeypatch.setattr("trtx.cache.store.inspect", look)
    assert store.find(KEY).manifest is not None


def test_publishing_gives_up_on_a_place_that_cannot_be_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def occupy(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with store.stage(KEY) as folder:
        (folder / "output" / "file").write_text("x")
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda self, target: (occupy if target == store.entry(KEY) else rename)(self, target)
        )
        with pytest.raises(EnvironmentProblem, match="cannot publish the entry"):
            store.publish(folder, draft())
