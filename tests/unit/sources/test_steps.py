"""The download and dataset steps on top of the sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit.sources.conftest import MODEL_FILES

from trtx.errors import UsageProblem
from trtx.models.sources.base import Request, find_source
from trtx.models.sources.texts import list_ranges
from trtx.stages import dataset, download
from trtx.stages.base import StepContext
from trtx.stages.params import DatasetParams, DownloadParams


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    output, work = tmp_path / "output", tmp_path / "work"
    output.mkdir()
    work.mkdir()
    return StepContext({}, output, work)


def make_params(url: str, **changes: object) -> DatasetParams:
    split = str(changes.get("split", "train"))
    resolved = find_source(url).resolve(Request(url, "dataset", "main", split=split))
    defaults = {"split": split, "column": "text", "samples": 4, "heldout": 2, "seed": 7}
    return DatasetParams.model_validate({"url": resolved.url, "identity": resolved.identity, **defaults, **changes})


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_download_fetches_the_planned_files(tmp_path: Path, context: StepContext) -> None:
    (tmp_path / "model").mkdir()
    for name, content in MODEL_FILES.items():
        (tmp_path / "model" / name).write_bytes(content)
    url = f"file://{tmp_path}/model"
    resolved = find_source(url).resolve(Request(url, "model"))
    summary = download.run(DownloadParams(url=resolved.url, identity=resolved.identity), context)
    assert summary == {"files": len(MODEL_FILES), "bytes": sum(map(len, MODEL_FILES.values()))}
    assert {path.name for path in context.output.iterdir()} == set(MODEL_FILES)


def test_a_dataset_step_leaves_two_disjoint_files(tmp_path: Path, context: StepContext) -> None:
    source = tmp_path / "own.txt"
    source.write_text("\n\n".join(f"paragraph {number}, with 'ö'" for number in range(8)), encoding="utf-8")
    params = make_params(f"file://{source}")
    summary = dataset.run(params, context)
    calibration, held_out = (texts(context.output / f"{name}.jsonl") for name in ("calibration", "heldout"))
    assert (summary["calibration_rows"], summary["heldout_rows"]) == (len(calibration), len(held_out)) == (4, 2)
    assert not set(calibration) & set(held_out)
    assert sorted(path.name for path in context.output.iterdir()) == ["calibration.jsonl", "heldout.jsonl", "rows.json"]


def test_the_rows_of_a_dataset_step_can_be_drawn_again_by_hand(tmp_path: Path, context: StepContext) -> None:
    source = tmp_path / "own.jsonl"
    rows = [f"row {number}" for number in range(40)]
    source.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    summary = dataset.run(make_params(f"file://{source}", samples=12, heldout=5), context)
    uses = json.loads((context.output / "rows.json").read_text())["uses"]
    for use, count in (("calibration", 12), ("heldout", 5)):
        assert uses[use]["files"] == ["own.jsonl"]
        assert [rows[number] for number in uses[use]["rows"]] == texts(context.output / f"{use}.jsonl")
        assert len(uses[use]["rows"]) == count
        assert summary["rows"][use] == list_ranges(uses[use]["rows"])


def test_very_many_rows_are_listed_in_their_file_and_not_in_the_manifest(tmp_path: Path, context: StepContext) -> None:
    source = tmp_path / "own.txt"
    source.write_text("\n\n".join(f"paragraph {number}" for number in range(1100)))
    summary = dataset.run(make_params(f"file://{source}", samples=1025, heldout=3), context)
    assert list(summary["rows"]) == ["heldout"]
    assert len(json.loads((context.output / "rows.json").read_text())["uses"]["calibration"]["rows"]) == 1025


def test_one_file_has_no_splits_whatever_it_is_called(tmp_path: Path, context: StepContext) -> None:
    source = tmp_path / "test.jsonl"
    source.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(8)))
    assert dataset.run(make_params(f"file://{source}"), context)["heldout_rows"] == 2


def test_held_out_rows_come_from_the_validation_split(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        rows = (json.dumps({"body": f"{split} {number}"}) + "\n" for number in range(5))
        (folder / f"{split}.jsonl").write_text("".join(rows))
    dataset.run(make_params(f"file://{folder}", column="body"), context)
    assert all(text.startswith("train") for text in texts(context.output / "calibration.jsonl"))
    assert all(text.startswith("valid") for text in texts(context.output / "heldout.jsonl"))


def test_too_few_rows_are_refused_and_nothing_is_left(tmp_path: Path, context: StepContext) -> None:
    source = tmp_path / "own.txt"
    source.write_text("one\n\ntwo")
    with pytest.raises(UsageProblem, match="too few rows: 6 are needed, 2 are there"):
        dataset.run(make_params(f"file://{source}"), context)
    assert list(context.output.iterdir()) == []
