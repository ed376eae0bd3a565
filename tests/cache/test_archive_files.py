"""Where an archive is written to and read from: plain files, and pipes for reading."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from support.remotes import ignore_progress, make_entry

from trtx.cache.archive import export_entries, import_entries
from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem, UsageProblem


def export(store: Store, path: Path, manifest: Manifest) -> Path:
    export_entries(store, [manifest], path, None, ignore_progress)
    return path


@pytest.mark.parametrize("name", [".", "/", "folder", "no/such/cache.tar", "pipe"])
def test_an_archive_is_written_to_a_plain_file_only(tmp_path: Path, store: Store, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageProblem, match="cannot write an archive"):
        export(store, Path(name) if name in "./" else tmp_path / name, make_entry(store))
    assert sorted(tmp_path.iterdir()) == before


def test_the_name_of_an_archive_may_be_too_long(tmp_path: Path, store: Store) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        export(store, tmp_path / ("x" * 250), make_entry(store))
    assert [path.name for path in tmp_path.iterdir()] == [store.root.name]


def test_an_archive_may_come_through_a_pipe(tmp_path: Path, store: Store, other_store: Store) -> None:
    path = export(store, tmp_path / "cache.tar.gz", sent := make_entry(store))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    writer.start()
    assert import_entries(tmp_path / "pipe", other_store, None, ignore_progress)[0] == [sent]
    writer.join()
