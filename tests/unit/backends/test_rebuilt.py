"""The verdict about a rebuild: the best that can be said, and never more."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trtx.backends.rebuilt import Compared, Comparison, Outputs, compare_files, compare_values, flatten, worst

SAME, OTHER = Compared(count=4), Compared(count=4, different=("one",))


def outputs(distance: float = 0.0, mismatches: int = 0) -> Outputs:
    return Outputs(sequences=4, tokens=24, largest=distance, distance=distance, bound=0.01, mismatches=mismatches)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Comparison(files=SAME, choices=SAME, records=SAME, outputs=outputs()), "bit-identical"),
        (Comparison(files=SAME), "bit-identical"),
        (Comparison(files=OTHER, choices=SAME, records=SAME, outputs=outputs(0.01)), "same choices"),
        (Comparison(files=OTHER, choices=OTHER, records=SAME, outputs=outputs(0.01)), "equal within a bound"),
        (Comparison(files=OTHER, choices=SAME, records=OTHER, outputs=outputs()), "equal within a bound"),
        (Comparison(files=OTHER, choices=SAME, records=SAME, outputs=outputs(0.011)), "differs"),
        (Comparison(files=OTHER, choices=SAME, records=SAME, outputs=outputs(0.0, 1)), "differs"),
        (Comparison(files=SAME, choices=SAME, records=SAME, outputs=outputs(math.nan)), "differs"),
        # Without outputs nothing is known of an engine that has other bytes.
        (Comparison(files=OTHER, choices=SAME), "differs"),
    ],
)
def test_verdicts(found: Comparison, verdict: str) -> None:
    assert found.verdict == verdict
    assert Comparison.model_validate_json(found.model_dump_json()).verdict == verdict


def test_files_are_compared_by_their_bytes_and_none_is_forgotten(tmp_path: Path) -> None:
    for folder, names in (("entry", ("a", "b/c", "gone", "times")), ("rebuilt", ("a", "b/c", "new", "times"))):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(folder if name in ("b/c", "times") else name)
    found = compare_files(tmp_path / "entry", tmp_path / "rebuilt", ("times",))
    assert found == Compared(count=4, different=("b/c", "gone was not made again", "new is new"))
    assert compare_files(tmp_path / "entry", tmp_path / "entry") == Compared(count=4)


def test_values_are_compared_by_name_and_shown_shortened() -> None:
    before, after = {"a": 1, "b": None, "c": "x" * 99}, {"a": 1, "c": "y" * 99, "d": 2}
    found = compare_values(before, after)
    assert found.count == 4
    assert found.different == (
        "b: None → (none)",
        f"c: {'x' * 28}…{'x' * 28} → {'y' * 28}…{'y' * 28}",
        "d: (none) → 2",
    )


def test_settings_are_flat_by_the_names_that_lead_to_them() -> None:
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}


def test_the_worst_verdict_decides() -> None:
    assert worst(["same choices", "differs", "bit-identical"]) == "differs"
    assert worst([]) is None
