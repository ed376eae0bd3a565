"""Rows of text: reading every kind of file, and drawing from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.models.sources.texts import draw_texts, list_ranges, read_texts


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": 1, "text": "eins"}\n\n{"id": 2, "text": "zwölf, ja"}\n'),
        ("a.json", '[{"text": "eins"}, {"text": "zwölf, ja"}]'),
        ("a.csv", 'id,text\n1,eins\n2,"zwölf, ja"\n'),
        ("a.txt", "eins\n\nzwölf, ja"),
    ],
)
def test_every_kind_of_file_gives_its_texts(tmp_path: Path, name: str, content: str) -> None:
    assert list(read_texts([write(tmp_path / name, content)], "text")) == ["eins", "zwölf, ja"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match="needs pyarrow") as caught:
        list(read_texts([tmp_path / "a.parquet"], "text"))
    assert caught.value.fix == "pip install 'trtx[parquet]'"


def test_parquet_gives_its_texts(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["eins", "zwei"]}), path)
    assert list(read_texts([path], "text")) == ["eins", "zwei"]
    path.write_bytes(b"PAR1")
    with pytest.raises(VerificationFailed, match="is not a parquet file"):
        list(read_texts([path], "text"))


def test_a_column_of_another_name_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"article": "x", "id": 3}\n')
    with pytest.raises(UsageProblem, match="no column 'artcle'") as caught:
        list(read_texts([path], "artcle"))
    assert "'article'" in caught.value.fix
    with pytest.raises(UsageProblem, match=r"column 'id' of a\.jsonl is not text") as caught:
        list(read_texts([path], "id"))
    assert "row 1 holds a int" in caught.value.why
    assert "article" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"text": "x"}\n{"text": \n'), ("a.json", "[{"), ("a.csv", 'text\n"' + "\x00\r")],
)
def test_a_file_that_cannot_be_parsed_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    if name == "a.csv":
        path.write_bytes(b"text\n\xff\xfe\n")
    with pytest.raises(VerificationFailed, match=f"{name} cannot be read"):
        list(read_texts([path], "text"))


@pytest.mark.parametrize(("name", "content"), [("a.json", "{}"), ("a.jsonl", "3\n")])
def test_rows_that_are_no_objects_are_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageProblem, match="not an"):
        list(read_texts([write(tmp_path / name, content)], "text"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = [f"text {number}" for number in range(50)]
    return write(
        tmp_path / "rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in [*texts, " ", *texts, ""])
    )


def test_rows_are_drawn_by_seed_and_no_text_is_in_both(rows: Path) -> None:
    first = draw_texts([rows], [], "text", 30, 20, seed=7)
    assert first == draw_texts([rows], [], "text", 30, 20, seed=7)
    assert first != draw_texts([rows], [], "text", 30, 20, seed=8)
    calibration, held_out = first
    assert (len(calibration.texts), len(held_out.texts)) == (30, 20)
    assert len({*calibration.texts, *held_out.texts}) == 50
    by_number = list(read_texts([rows], "text"))
    assert [by_number[number] for number in held_out.numbers] == list(held_out.texts)


def test_held_out_rows_come_from_their_own_file_where_there_is_one(rows: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "validation.jsonl", '{"text": "text 3"}\n{"text": "new"}\n')
    calibration, held_out = draw_texts([rows], [other], "text", 50, 1, seed=7)
    assert held_out.texts == ("new",)  # "text 3" is in the other file, so it does not count
    assert (held_out.files, held_out.numbers) == ((other,), (1,))
    assert "new" not in calibration.texts


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((7,), "7"), ((3, 1, 2, 9), "1-3 9"), (range(100), "0-99"), ((4, 6, 5, 0), "0 4-6")]
)
def test_row_numbers_are_listed_as_ranges(numbers: Iterable[int], text: str) -> None:
    assert list_ranges(numbers) == text


def test_too_few_rows_says_how_many_there_are(rows: Path) -> None:
    with pytest.raises(UsageProblem, match="51 are needed, 50 are there") as caught:
        draw_texts([rows], [], "text", 50, 1, seed=7)
    assert "rows.jsonl" in caught.value.why
