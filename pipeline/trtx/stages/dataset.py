"""The dataset step: texts from their source, and the rows drawn from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trtx.files import walk_files, write_json, write_text
from trtx.models.sources.base import Request, find_source
from trtx.models.sources.select import data_files, held_out_files, names_one_file
from trtx.models.sources.texts import Drawn, draw_texts, list_ranges
from trtx.stages.base import StepContext
from trtx.stages.params import DatasetParams

CALIBRATION_NAME, HELD_OUT_NAME, ROWS_NAME = "calibration.jsonl", "heldout.jsonl", "rows.json"
ROWS_SCHEMA = "trtx.rows/v1"
# 1,024 rows of a million take some 7 KB.
MAX_LISTED = 1024


def run(params: DatasetParams, context: StepContext) -> dict[str, Any]:
    """Draw rows by seed. Held-out rows come from the validation split where the dataset has one."""
    split = None if names_one_file(params.url) else params.split
    request = Request(params.url, "dataset", split=split, environ=os.environ)
    folder = context.work / "source"
    folder.mkdir()
    context.say(f"fetching {params.url} ({params.identity})")
    find_source(params.url).fetch(request, params.identity, folder, context.progress)

    names = [path.relative_to(folder).as_posix() for path in walk_files(folder)]
    data = [folder / name for name in data_files(names, params.url, split)]
    held_out = [folder / name for name in held_out_files(names, split)] if split else []
    calibration, other = draw_texts(data, held_out, params.column, params.samples, params.heldout, params.seed)
    write_rows(context.output / CALIBRATION_NAME, calibration)
    write_rows(context.output / HELD_OUT_NAME, other)
    drawn = {"calibration": calibration, "heldout": other}
    uses = {use: describe_rows(choice, folder) for use, choice in drawn.items()}
    write_json(context.output / ROWS_NAME, {"schema": ROWS_SCHEMA, "column": params.column, "uses": uses})
    characters = sum(map(len, calibration.texts))
    source = "the validation split" if held_out else "other rows"
    context.say(f"{params.samples} rows to calibrate with ({characters} characters), {params.heldout} from {source}")
    return {
        "calibration_rows": len(calibration.texts),
        "heldout_rows": len(other.texts),
        "characters": characters,
        "rows": {use: list_ranges(choice.numbers) for use, choice in drawn.items() if is_short(choice)},
    }


def write_rows(path: Path, drawn: Drawn) -> None:
    """One {"text": …} a line."""
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in drawn.texts))


def describe_rows(drawn: Drawn, folder: Path) -> dict[str, Any]:
    """Which rows, in the order they were drawn in, of which files, in the order they are counted over from 0."""
    names = [path.relative_to(folder).as_posix() for path in drawn.files]
    return {"files": names, "rows": list(drawn.numbers)}


def is_short(drawn: Drawn) -> bool:
    """Whether the rows can be listed in the manifest, which every plan reads; rows.json has them in any case."""
    return len(drawn.numbers) <= MAX_LISTED
