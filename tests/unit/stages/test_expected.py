"""What a lock demands of a step's files."""

from __future__ import annotations

import pytest

from trtx.cache.manifest import FileRecord
from trtx.errors import VerificationFailed
from trtx.stages.expected import check_expected

A, B = "a" * 64, "b" * 64


def test_without_a_lock_everything_is_allowed() -> None:
    check_expected("download/model", {}, [FileRecord("x", 1, A)])


def test_the_same_files_are_accepted() -> None:
    check_expected("download/model", {"x": A, "y": B}, [FileRecord("y", 1, B), FileRecord("x", 1, A)])


@pytest.mark.parametrize(
    ("expected", "name", "part"),
    [({"x": B}, "x", f"the source gave sha256 {A}"), ({"x": A, "y": B}, "y", "no such file"), ({"y": A}, "x", A)],
)
def test_other_missing_and_additional_files_are_refused(expected: dict[str, str], name: str, part: str) -> None:
    with pytest.raises(VerificationFailed, match=f"{name} is not what the lock says") as caught:
        check_expected("download/model", expected, [FileRecord("x", 1, A)])
    assert part in caught.value.why
