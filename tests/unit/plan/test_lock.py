"""The lock's text: what is written is read back, the same facts give the same bytes, and damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtx.errors import UsageProblem
from trtx.plan.lock import HEADER, Lock, dump_lock, lock_path, parse_lock, read_lock, write_lock

KEY = "ab" * 32
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
# What may stand in a URL, a tag or a version; and texts that YAML could take for something else.
WORDS = st.one_of(
    st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    st.sampled_from(
        ["no", "1.0", "1e3", "0x1", "null", "~", "a: b", "- a", "#a", "hf://o/n@main#train", "é", "2026-01-01"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), WORDS
)
FILES = st.dictionaries(WORDS, st.fixed_dictionaries({"bytes": st.integers(0, 1 << 40), "sha256": DIGESTS}), max_size=3)
ROWS = st.dictionaries(
    WORDS, st.fixed_dictionaries({"count": st.integers(0, 99)}, optional={"numbers": WORDS}), max_size=2
)
DRAWS = st.dictionaries(WORDS, st.fixed_dictionaries({"files": FILES, "rows": ROWS}), max_size=2)
LOCKS = st.fixed_dictionaries(
    {"schema": st.just("trtx.lock/v1")},
    optional={
        "benchmark": st.fixed_dictionaries({"trtx": WORDS, "code": st.integers(1, 9)}),
        "builds": st.dictionaries(
            WORDS,
            st.fixed_dictionaries(
                {
                    "arch": WORDS,
                    "key": DIGESTS,
                    "choices": st.dictionaries(
                        WORDS, st.one_of(SCALARS, st.dictionaries(WORDS, SCALARS, max_size=2)), max_size=2
                    ),
                }
            ),
            max_size=2,
        ),
        "containers": st.dictionaries(
            WORDS, st.fixed_dictionaries({}, optional={"digest": DIGESTS.map("sha256:{}".format)}), max_size=2
        ),
        "datasets": st.dictionaries(WORDS, st.fixed_dictionaries({"identity": WORDS, "draws": DRAWS}), max_size=2),
        "entries": st.dictionaries(WORDS, DIGESTS, max_size=3),
        "models": st.dictionaries(WORDS, st.fixed_dictionaries({"identity": WORDS, "files": FILES}), max_size=2),
        "stages": st.dictionaries(WORDS, st.integers(1, 9), max_size=3),
    },
).map(Lock.model_validate)


def parse(text: str) -> Lock:
    return parse_lock(text.encode(), "recipe.lock.yaml")


def refusal(text: str) -> UsageProblem:
    with pytest.raises(UsageProblem) as caught:
        parse(text)
    return caught.value


def body(**facts: Any) -> Lock:
    return Lock.model_validate({"schema": "trtx.lock/v1", **facts})


@settings(max_examples=150, deadline=None)
@given(LOCKS)
def test_a_lock_is_read_back_as_it_was_and_written_again_to_the_same_bytes(lock: Lock) -> None:
    text = dump_lock(lock)
    again = parse(text)
    assert again.to_data() == lock.to_data()
    assert dump_lock(again) == text


def test_the_order_in_which_facts_are_found_does_not_show() -> None:
    one = body(entries={"a": KEY, "b": KEY}, stages={"x": 1, "y": 2})
    other = body(stages={"y": 2, "x": 1}, entries={"b": KEY, "a": KEY})
    assert dump_lock(one) == dump_lock(other)


def test_one_changed_fact_changes_one_line() -> None:
    file = {"bytes": 10, "sha256": KEY}
    facts = {
        "models": {"hf://o/n@main": {"identity": "c" * 40, "files": {"a.bin": file, "b.bin": file}}},
        "entries": {f"step/{number}": KEY for number in range(9)},
    }
    before = dump_lock(body(**facts)).splitlines()
    facts["entries"] = {**facts["entries"], "step/4": "cd" * 32}
    after = dump_lock(body(**facts)).splitlines()
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_keys_stand_in_the_text_as_plain_words() -> None:
    assert f"  build/cpu/fp32: {KEY}\n" in dump_lock(body(entries={"build/cpu/fp32": KEY}))


def test_a_lock_begins_with_what_it_is_and_how_it_is_renewed() -> None:
    assert dump_lock(Lock()).startswith(HEADER)
    assert "trtx lock RECIPE" in HEADER


def test_a_lock_stands_beside_its_recipe() -> None:
    assert lock_path(Path("a/recipe.yaml")) == Path("a/recipe.lock.yaml")
    assert lock_path(Path("b.prod.yml")) == Path("b.prod.lock.yaml")


def test_a_missing_lock_is_none_and_a_written_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "recipe.lock.yaml"
    assert read_lock(path) is None
    write_lock(path, body(stages={"build": 2}))
    assert read_lock(path) == body(stages={"build": 2})
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.lock.yaml"]


def test_a_lock_that_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="cannot be read"):
        read_lock(tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "it has no schema"),
        ("[1, 2]", "it has no schema"),
        ("schema: trtx/v1", "its schema is trtx/v1"),
        ("schema: trtx.lock/v1\nstages: {build: two}", "stages → build: input should be a valid integer"),
        ("schema: trtx.lock/v1\nentries: {a: 12ab}", "entries → a: string should match"),
        ("schema: trtx.lock/v1\nmodels: {m: {identity: x, revision: y}}", "models → m → revision: extra inputs"),
        ("schema: trtx.lock/v1\nstages: {build: 1, build: 2}", "line 2: 'build' stands twice"),
        ("schema: trtx.lock/v1\nmodels: &a {m: {identity: x}}\ndatasets: *a", "an alias is not allowed here"),
        ("schema: trtx.lock/v1\nmodels: {", "line 3: did not find"),
        ("schema: trtx.lock/v1\nstages: {[1]: 2}", "found unhashable key"),
        ("schema: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_a_lock_that_was_edited_is_refused_with_the_place(text: str, part: str) -> None:
    error = refusal(text)
    assert part in error.why
    assert "trtx lock" in error.fix


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UsageProblem, match="cannot be read"):
        parse_lock(b"schema: \xff\xfe", "recipe.lock.yaml")


def test_a_newer_lock_asks_for_a_newer_trtx() -> None:
    error = refusal("schema: trtx.lock/v9\nmodels: {}")
    assert "another version of trtx" in error.what
    assert "trtx.lock/v9" in error.why


def test_a_merge_that_was_not_finished_is_recognised() -> None:
    text = dump_lock(body(entries={"a": KEY}))
    torn = text.replace("entries:\n", "entries:\n<<<<<<< ours\n").replace(
        f"{KEY}\n", f"{KEY}\n=======\n>>>>>>> theirs\n"
    )
    assert "merge that was not finished" in refusal(torn).what
