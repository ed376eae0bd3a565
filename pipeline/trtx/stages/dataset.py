"""The dataset step: texts from their source, and the rows drawn from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trtx.files import walk_files, write_text
from trtx.models.sources.base import Request, find_source
from trtx.models.sources.select import data_files, held_out_files, names_one_file
from trtx.models.sources.texts import draw_texts
from trtx.stages.base import StepContext
from trtx.stages.params import DatasetParams

CALIBRATION_NAME, HELD_OUT_NAME = "calibration.jsonl", "heldout.jsonl"


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
    characters = sum(map(len, calibration))
    source = "the validation split" if held_out else "other rows"
    context.say(f"{len(calibration)} rows to calibrate with ({characters} characters), {len(other)} from {source}")
    return {"calibration_rows": len(calibration), "heldout_rows": len(other), "characters": characters}


def write_rows(path: Path, texts: list[str]) -> None:
    """One {"text": …} a line."""
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
