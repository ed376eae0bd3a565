"""Files appear whole or not at all, and what disks do wrong is one message."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trtx import files
from trtx.errors import EnvironmentProblem


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    files.write_json(path, {"b": 1, "a": [2]})
    files.write_json(path, {"c": 3})
    assert files.read_json(path) == {"c": 3}
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentProblem, match="cannot write") as caught:
        files.write_text(path, "new")
    assert caught.value.why == "the disk is full"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EPERM])
def test_each_disk_error_says_why_and_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(EnvironmentProblem) as caught, files.disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.why
    assert caught.value.fix


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError), files.disk_errors(tmp_path):
        raise OSError(errno.EINTR, "interrupted")


def test_a_file_cannot_be_written_below_a_file_or_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, why in (
        (tmp_path / "file" / "x", "a part of that path is a file"),
        (tmp_path / "folder", "a folder has"),
    ):
        with pytest.raises(EnvironmentProblem) as caught:
            files.write_text(path, "text")
        assert why in caught.value.why


def test_a_link_is_made_where_possible_and_a_copy_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    files.link_or_copy(source, tmp_path / "a" / "linked")
    assert (tmp_path / "a" / "linked").stat().st_ino == source.stat().st_ino

    def refuse(*_paths: Path) -> None:
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "link", refuse)
    files.link_or_copy(source, tmp_path / "b" / "copied")
    assert (tmp_path / "b" / "copied").stat().st_ino != source.stat().st_ino
    assert (tmp_path / "b" / "copied").read_bytes() == b"weights"


def test_equal_values_have_one_canonical_form() -> None:
    assert (
        files.canonical_json({"b": 1, "a": "é"})
        == files.canonical_json({"a": "é", "b": 1})
        == '{"a":"é","b":1}'.encode()
    )
    with pytest.raises(ValueError, match="JSON"):
        files.canonical_json(float("nan"))
