"""The shelf of built kernels gives out what is intact, and bounds itself."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from trtx.kernels import shelf as module
from trtx.kernels.shelf import STAGED_S, UNUSED_S, alone, put, shelf_bytes, take, trim

NAME = "trtx_0123456789abcdef"


def make_library(folder: Path, content: bytes = b"code") -> Path:
    path = folder / "made.so"
    path.write_bytes(content)
    return path


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def names(shelf: Path) -> list[str]:
    return sorted(path.name for path in shelf.iterdir())


def test_a_library_that_cannot_be_copied_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        put(tmp_path / "shelf", NAME, tmp_path / "none.so")
    assert list((tmp_path / "shelf").iterdir()) == []


def test_a_shelf_is_read_by_others_and_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    put(shelf, NAME, make_library(tmp_path))
    (kept,) = shelf.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o644
    kept.unlink()
    kept.mkdir()  # root may read everything but a folder
    assert not take(shelf, NAME, tmp_path / "taken.so")


def test_what_was_put_is_taken_and_counts_as_used(tmp_path: Path) -> None:
    shelf, taken = tmp_path / "shelf", tmp_path / "taken.so"
    assert not take(shelf, NAME, taken)
    put(shelf, NAME, make_library(tmp_path))
    (kept,) = shelf.iterdir()
    age(kept, 30 * 86400)
    assert take(shelf, NAME, taken)
    assert taken.read_bytes() == b"code"
    assert time.time() - kept.stat().st_mtime < 60
    assert not take(shelf, "trtx_fedcba9876543210", taken)
    assert shelf_bytes(shelf) == 4


def test_a_damaged_library_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path / "shelf", NAME, make_library(tmp_path))
    (kept,) = (tmp_path / "shelf").iterdir()
    kept.write_bytes(b"c0de")
    assert not take(tmp_path / "shelf", NAME, tmp_path / "taken.so")


def test_a_library_that_goes_while_it_is_looked_at_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "shelf", NAME, make_library(tmp_path))
    copy = module.shutil.copyfile

    def lose(source: Path, target: Path) -> None:
        source.unlink()
        copy(source, target)

    monkeypatch.setattr(module.shutil, "copyfile", lose)
    assert not take(tmp_path / "shelf", NAME, tmp_path / "taken.so")


def test_what_nobody_used_for_long_goes_when_something_is_added(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    put(shelf, "trtx_old", make_library(tmp_path, b"old"))
    age(next(shelf.iterdir()), UNUSED_S + 60)
    (shelf / "staged-by-a-killed-build").write_bytes(b"half")
    age(shelf / "staged-by-a-killed-build", STAGED_S + 60)
    (shelf / "staged-right-now").write_bytes(b"half")
    (shelf / "somebody's own.txt").write_text("stays")
    age(shelf / "somebody's own.txt", 10 * UNUSED_S)
    put(shelf, NAME, make_library(tmp_path))
    assert [name.partition("-")[0] for name in names(shelf)] == ["somebody's own.txt", "staged", NAME]


def test_the_longest_unused_go_until_the_rest_is_small_enough(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    for number in range(4):
        put(shelf, f"trtx_{number}", make_library(tmp_path, b"x" * 10))
        age(next(shelf.glob(f"trtx_{number}-*")), 100 * (4 - number))
    trim(shelf, max_bytes=25)
    assert [name[:6] for name in names(shelf)] == ["trtx_2", "trtx_3"]
    # What was added just now stays, however large it is.
    trim(shelf, next(shelf.glob("trtx_2-*")), max_bytes=5)
    assert [name[:6] for name in names(shelf)] == ["trtx_2"]


def test_builds_take_while_others_add_and_delete(tmp_path: Path) -> None:
    shelf, library = tmp_path / "shelf", make_library(tmp_path, b"y" * 100_000)
    put(shelf, NAME, library)
    failed: list[BaseException] = []

    def disturb() -> None:
        try:
            for number in range(40):
                put(shelf, f"trtx_{number}", library)
                trim(shelf, max_bytes=150_000)
                put(shelf, NAME, library)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    while thread.is_alive():
        taken = tmp_path / "taken.so"
        if take(shelf, NAME, taken):
            assert taken.read_bytes() == library.read_bytes()
    thread.join()
    assert not failed


def test_of_two_who_want_the_same_one_waits_for_the_other(tmp_path: Path) -> None:
    shelf, order = tmp_path / "shelf", list[str]()
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with alone(shelf, NAME):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with alone(shelf, NAME):
        inside.set()
        with alone(shelf, "something else"):
            time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert shelf_bytes(shelf) == 0


def test_a_shelf_that_cannot_be_written_makes_nobody_wait(tmp_path: Path) -> None:
    (tmp_path / "shelf").write_text("a file")
    with alone(tmp_path / "shelf", NAME):
        pass
