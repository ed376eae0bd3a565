"""Rows of text from data files, and which of them are drawn. Imports no torch.

A row is a JSON object (.jsonl, or an array in .json), a line of a .csv with a header, a row of a .parquet file, or a
paragraph of a .txt file (paragraphs end at an empty line).
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed, did_you_mean

Rows = Iterator[Mapping[str, Any]]


@dataclass(frozen=True)
class Drawn:
    """Texts and where they come from: `numbers[i]` is the row of `texts[i]`, counted from 0 over `files` in order."""

    files: tuple[Path, ...]
    numbers: tuple[int, ...]
    texts: tuple[str, ...]


def draw_texts(
    data: Sequence[Path], held_out: Sequence[Path], column: str, samples: int, held_out_samples: int, seed: int
) -> tuple[Drawn, Drawn]:
    """Texts to calibrate with and other texts to measure on, drawn by `seed`; no text is in both.

    The second are drawn from `held_out`, or from the same files where that is empty. Files are read twice rather than
    kept in memory. Empty and repeated texts do not count.

    Raises UsageProblem when there are too few rows or no such column.
    """
    draw = random.Random(seed)
    seen: set[bytes] = set()
    rows = distinct_rows(data, column, seen)
    if held_out:
        chosen = _sample(draw, rows, samples, data)
        others = _sample(draw, distinct_rows(held_out, column, seen), held_out_samples, held_out)
        return pick_rows(data, column, chosen), pick_rows(held_out, column, others)
    numbers = _sample(draw, rows, samples + held_out_samples, data)
    return pick_rows(data, column, numbers[:samples]), pick_rows(data, column, numbers[samples:])


def distinct_rows(files: Sequence[Path], column: str, seen: set[bytes]) -> list[int]:
    """Numbers of the rows whose text is neither empty nor already seen; what is seen is added."""
    numbers = []
    for number, text in enumerate(read_texts(files, column)):
        digest = hashlib.blake2b(text.strip().encode(errors="surrogatepass"), digest_size=16).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            numbers.append(number)
    return numbers


def pick_rows(files: Sequence[Path], column: str, numbers: Sequence[int]) -> Drawn:
    """The texts of rows by number, in the order of `numbers`."""
    wanted = set(numbers)
    found = {number: text for number, text in enumerate(read_texts(files, column)) if number in wanted}
    return Drawn(tuple(files), tuple(numbers), tuple(found[number] for number in numbers))


def list_ranges(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, neighbours joined: `0-3 17 20-21`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return " ".join("-".join(map(str, bounds)) for bounds in ranges)


def read_texts(files: Sequence[Path], column: str) -> Iterator[str]:
    """Every text of the files, in order.

    Raises UsageProblem for a row without the column, VerificationFailed for a file that cannot be parsed.
    """
    for path in files:
        number = 0
        try:
            for number, row in enumerate(READERS[path.suffix](path), start=1):
                yield _text_of(row, column, path, number)
        except (ValueError, csv.Error, UnicodeDecodeError) as error:
            raise VerificationFailed(
                f"{path.name} cannot be read as {path.suffix}", why=f"after row {number}: {error}"
            ) from error


def _text_of(row: Mapping[str, Any], column: str, path: Path, number: int) -> str:
    if not isinstance(row, Mapping):
        raise UsageProblem(f"row {number} of {path.name} is not an object", fix='write rows like {"text": "…"}')
    if path.suffix == ".txt":
        return str(row["text"])
    text = row.get(column)
    if column not in row:
        raise UsageProblem(f"{path.name} has no column '{column}'", fix=did_you_mean(column, map(str, row)))
    if not isinstance(text, str):
        raise UsageProblem(
            f"column '{column}' of {path.name} is not text",
            why=f"row {number} holds a {type(text).__name__}",
            fix=f"name one that is: {', '.join(name for name, value in row.items() if isinstance(value, str))}",
        )
    return text


def _read_txt(path: Path) -> Rows:
    for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        yield {"text": paragraph}


def _read_jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)


def _read_json(path: Path) -> Rows:
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list):
        raise UsageProblem(f"{path.name} is not an array of objects", fix="write it as .jsonl, one object a line")
    yield from rows


def _read_csv(path: Path) -> Rows:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def _read_parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise EnvironmentProblem(
            f"reading {path.name} needs pyarrow", why="it is not installed", fix="pip install 'trtx[parquet]'"
        ) from error
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise VerificationFailed(f"{path.name} is not a parquet file", why=str(error)) from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _sample(draw: random.Random, rows: list[int], wanted: int, files: Sequence[Path]) -> list[int]:
    if wanted > len(rows):
        raise UsageProblem(
            f"the dataset has too few rows: {wanted} are needed, {len(rows)} are there",
            why=f"empty and repeated texts do not count; files: {', '.join(path.name for path in files[:3])}",
            fix="lower `samples` or `heldout`, or name more text",
        )
    return draw.sample(rows, wanted)
