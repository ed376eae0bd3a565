"""The docstring corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtx.errors import EnvironmentProblem
from trtx.models.demo.corpus import collect_docs, write_corpus

LONG = "It explains itself at length, so that it is worth reading, learning and being measured on."


def write(root: Path, name: str, *docs: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f'def function_{number}():\n    """{doc}"""' for number, doc in enumerate(docs)))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in ("b.py", "a.py", "package/c.py", "test/d.py", "site-packages/e.py", "package/tests/f.py"):
        write(tmp_path, name, *(f"{name} {number}. {LONG}" for number in range(30)))
    return tmp_path


def test_the_order_is_that_of_names_and_lines_and_tests_and_packages_are_left_out(sources: Path) -> None:
    docs = collect_docs(sources)
    merged = docs["train"] + docs["validation"]
    assert sorted({doc.split()[0] for doc in merged}) == ["a.py", "b.py", "package/c.py"]
    expected = [f"{name} {number}. {LONG}" for name in ("a.py", "b.py", "package/c.py") for number in range(30)]
    assert [doc for doc in expected if doc in docs["train"]] == docs["train"]
    assert set(merged) == set(expected)


def test_a_document_s_split_does_not_depend_on_the_others(sources: Path) -> None:
    before = collect_docs(sources)
    (sources / "a.py").unlink()
    after = collect_docs(sources)
    for split, docs in after.items():
        assert set(docs) < set(before[split])


def test_short_foreign_and_repeated_docstrings_do_not_count(sources: Path) -> None:
    before = collect_docs(sources)
    write(sources, "z.py", "short", f"häßlich {LONG}", f"a.py 1. {LONG}")
    (sources / "broken.py").write_text("def (")
    (sources / "binary.py").write_bytes(b"\x00\xff")
    assert collect_docs(sources) == before


def test_a_python_without_sources_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no readable sources") as caught:
        collect_docs(tmp_path)
    assert caught.value.fix


def test_the_standard_library_gives_a_megabyte_in_two_splits(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    texts = {
        path.name: [json.loads(line)["text"] for line in path.read_text().splitlines()] for path in tmp_path.iterdir()
    }
    assert set(texts) == {"train.jsonl", "validation.jsonl"}
    assert sum(map(len, texts["train.jsonl"])) > 800_000
    assert 30_000 < sum(map(len, texts["validation.jsonl"])) < 150_000
    assert not set(texts["train.jsonl"]) & set(texts["validation.jsonl"])
