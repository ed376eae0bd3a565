"""A run's note keeps all that the run needs, from any folder, for as long as the run or its jobs are under way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.entries import key_of, make_store

from trtx.cache.runs import UNSEEN_S, end_run, forget_dead_runs, keys_of_runs, note_run
from trtx.cache.store import Store
from trtx.cache.usage import keys_in_use

KEY = key_of(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "cache")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / ".trtx" / "runs" / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    return folder


def jobs_of(record: Path) -> list[tuple[Path, Path]]:
    return [(record / "order.json", record / "settled.json")]


def change_note(store: Store, **fields: Any) -> Path:
    """Change the only note; returns its file."""
    [path] = (store.root / "runs").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def age(path: Path) -> None:
    moment = time.time() - UNSEEN_S - 60
    os.utime(path, (moment, moment))


def test_what_a_run_needs_is_in_use_from_its_note_to_its_end(store: Store, record: Path) -> None:
    note_run(store.root, record, [KEY, key_of(2)])
    assert keys_in_use(store) == dict.fromkeys([KEY, key_of(2)], f"in use by run {record.name} in {record}")
    forget_dead_runs(store.root)
    end_run(store.root, record)
    end_run(store.root, record)
    assert keys_in_use(store) == {}


def test_runs_of_one_name_in_two_folders_do_not_meet(store: Store, record: Path, tmp_path: Path) -> None:
    other = tmp_path / record.name
    note_run(store.root, record, [KEY])
    note_run(store.root, other, [key_of(2)])
    end_run(store.root, other)
    assert list(keys_of_runs(store.root)) == [KEY]


def test_a_killed_run_needs_nothing_and_its_note_goes(store: Store, record: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from trtx.cache.runs import note_run\n"
        "note_run(Path(sys.argv[1]), Path(sys.argv[2]), [sys.argv[3]]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(store.root), str(record), KEY], check=False)
    assert len(list((store.root / "runs").iterdir())) == 1
    assert keys_of_runs(store.root) == {}
    store.clean_staging()
    assert list((store.root / "runs").iterdir()) == []


def test_a_long_run_of_this_machine_does_not_grow_old_and_one_of_another_does(store: Store, record: Path) -> None:
    note_run(store.root, record, [KEY])
    age(change_note(store))
    assert KEY in keys_of_runs(store.root)
    path = change_note(store, host="elsewhere")
    assert KEY in keys_of_runs(store.root)
    age(path)
    assert keys_of_runs(store.root) == {}


@pytest.mark.parametrize("gone", [True, False])
def test_jobs_keep_what_their_run_needs_until_they_are_settled(store: Store, record: Path, gone: bool) -> None:
    note_run(store.root, record, [KEY], jobs_of(record))
    (record / "order.json").touch()
    age(change_note(store, **{"start": "0"} if gone else {"host": "elsewhere"}))
    end_run(store.root, record)
    forget_dead_runs(store.root)
    assert KEY in keys_of_runs(store.root)
    (record / "settled.json").touch()
    assert keys_of_runs(store.root) == {}


def test_a_run_that_ended_before_its_jobs_were_ordered_leaves_no_note(store: Store, record: Path) -> None:
    note_run(store.root, record, [KEY], jobs_of(record))
    end_run(store.root, record)
    assert list((store.root / "runs").iterdir()) == []


def test_jobs_whose_record_cannot_be_seen_keep_what_they_need_for_a_week(store: Store, record: Path) -> None:
    note_run(store.root, record, [KEY], jobs_of(record))
    path = change_note(store, start="0")
    shutil.rmtree(record)
    assert KEY in keys_of_runs(store.root)
    age(path)
    assert keys_of_runs(store.root) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"record": 1}', '{"record": ".", "jobs": [1], "keys": 1}'])
def test_a_damaged_note_keeps_nothing_stops_nothing_and_goes(store: Store, text: str) -> None:
    (store.root / "runs" / "2026-1.json").write_text(text)
    assert keys_of_runs(store.root) == {}
    store.clean_staging()
    assert list((store.root / "runs").iterdir()) == []


def test_a_run_without_a_note_goes_on(store: Store, record: Path) -> None:
    (store.root / "runs").rmdir()
    (store.root / "runs").write_text("in the way")
    note_run(store.root, record, [KEY])
    end_run(store.root, record)
    store.clean_staging()
    assert keys_of_runs(store.root) == {}
