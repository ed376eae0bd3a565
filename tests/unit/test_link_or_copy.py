"""Taking a file out of the cache: a hard link, else shared blocks, else a copy; the same bytes in every case."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtx import files
from trtx.errors import EnvironmentProblem

CONTENT = os.urandom(3 << 20)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    path.chmod(0o444)
    return path


def fail_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_paths: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)


def fail_reflinks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)


def test_a_hard_link_where_possible(source: Path, tmp_path: Path) -> None:
    assert files.link_or_copy(source, tmp_path / "a" / "target") == "link"
    assert (tmp_path / "a" / "target").samefile(source)


@pytest.mark.parametrize("number", files.NO_HARD_LINK)
@pytest.mark.parametrize("also", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EIO])
def test_a_copy_where_neither_links_nor_shared_blocks_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, also: int
) -> None:
    fail_links(monkeypatch, number)
    fail_reflinks(monkeypatch, also)
    assert files.link_or_copy(source, tmp_path / "target") == "copy"
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_another_file_system_gets_a_copy(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "other"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(target)], check=True)
    try:
        assert files.link_or_copy(source, target / "copy") == "copy"
        assert (target / "copy").read_bytes() == CONTENT
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_full_file_system_is_one_message_and_no_part_is_left(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(target)], check=True)
    try:
        with pytest.raises(EnvironmentProblem, match="cannot write"):
            files.link_or_copy(source, target / "copy")
        assert list(target.iterdir()) == []
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_file_with_as_many_links_as_it_can_have_is_copied(source: Path, tmp_path: Path) -> None:
    # ext4 allows 65,000 links, others more; where there is no end to them there is nothing to test.
    folder = tmp_path / "links"
    folder.mkdir()
    for number in range(65_100):
        try:
            os.link(source, folder / str(number))
        except OSError as error:
            assert error.errno == errno.EMLINK
            assert files.link_or_copy(source, tmp_path / "target") in ("reflink", "copy")
            assert (tmp_path / "target").read_bytes() == CONTENT
            return
    assert files.link_or_copy(source, tmp_path / "target") == "link"


@pytest.mark.parametrize("links_fail", [False, True])
def test_a_target_that_is_there_is_never_overwritten(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links_fail: bool
) -> None:
    (tmp_path / "target").write_text("mine")
    if links_fail:
        fail_links(monkeypatch, errno.EXDEV)
    with pytest.raises(FileExistsError):
        files.link_or_copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"


def test_other_errors_of_linking_are_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_links(monkeypatch, errno.EACCES)
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        files.link_or_copy(source, tmp_path / "target")


@pytest.fixture(params=["btrfs", "xfs"])
def sharing_mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system that can share blocks between files, in a sparse file."""
    kind = request.param
    if shutil.which(f"mkfs.{kind}") is None or kind not in Path("/proc/filesystems").read_text():
        pytest.skip(f"this machine cannot make and mount {kind}")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as stream:
        stream.truncate(400 << 20)
    folder.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False, capture_output=True).returncode:
        pytest.skip(f"this machine cannot mount {kind} from a file")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_blocks_are_really_shared_where_the_file_system_can(
    sharing_mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sharing_mount / "source"
    source.write_bytes(CONTENT)
    os.sync()
    fail_links(monkeypatch, errno.EMLINK)
    free = shutil.disk_usage(sharing_mount).free
    for number in range(20):
        assert files.link_or_copy(source, sharing_mount / f"target-{number}") == "reflink"
    os.sync()
    assert (sharing_mount / "target-7").read_bytes() == CONTENT
    assert free - shutil.disk_usage(sharing_mount).free < 2 * len(CONTENT)
    (sharing_mount / "target-7").write_bytes(b"changed")
    assert source.read_bytes() == CONTENT
