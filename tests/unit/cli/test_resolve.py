"""`trtx resolve` prints the recipe as it is understood, to people as YAML and to tools as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.malformed import recipe

from trtx.cli.main import main
from trtx.recipe.load import load_recipe

MATRIX = "matrix: {axes: {batch: {path: engine.limits.max_batch_size, values: [4, 8]}}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["resolve", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_what_is_printed_is_a_recipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe())
    out = printed(capsys, str(path), "--set", "serving.port=8001")
    path.write_text(out)
    assert load_recipe(path).recipe.serving.port == 8001
    assert printed(capsys, str(path)) == out


def test_origins_stand_at_the_end_of_each_line(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "me")
    (path.parent / "base.yaml").write_text(recipe())
    path.write_text("extends: base.yaml\nname: over\ndescription: by ${env.WHO}\n")
    out = printed(capsys, str(path), "--origins", "--set", "serving.port=1")
    lines = {line.split("  # ")[0].strip(): line.split("  # ")[1] for line in out.splitlines() if "  # " in line[4:]}
    assert lines["name: over"] == f"{path}:2:7"
    assert lines["schema: trtx/v1"] == f"{path.parent}/base.yaml:1:9"
    assert lines["port: 1"] == "--set serving.port=1"
    assert lines["api: openai"] == "default"
    assert lines["description: by me"] == f"{path}:3:14, with ${{env.WHO}}"


def test_a_matrix_is_one_document_for_each_point(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(extra=MATRIX))
    out = printed(capsys, str(path))
    assert [made["engine"]["limits"]["max_batch_size"] for made in yaml.safe_load_all(out)] == [4, 8]
    assert out.startswith("# cells: cpu/fp32/batch-4, cpu/int8/batch-4\nschema: trtx/v1\n")
    assert "\n---\n# cells: cpu/fp32/batch-8, cpu/int8/batch-8\nschema:" in out


def test_a_selection_of_one_point_is_one_recipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(extra=MATRIX))
    out = printed(capsys, f"{path}:*/*/batch-8")
    assert "---" not in out
    path.write_text(out)
    assert load_recipe(path).recipe.engine.limits.max_batch_size == 8


def test_tools_get_json_alone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(extra=MATRIX))
    answer = json.loads(printed(capsys, str(path), "-o", "json", "--origins"))
    assert answer["schema"] == "trtx.resolve/v1"
    assert [made["cells"] for made in answer["recipes"]] == [
        ["cpu/fp32/batch-4", "cpu/int8/batch-4"],
        ["cpu/fp32/batch-8", "cpu/int8/batch-8"],
    ]
    first = answer["recipes"][0]
    assert first["recipe"]["engine"]["limits"]["max_batch_size"] == 4
    assert first["origins"]["engine.limits.max_batch_size"] == f"{path}:11:70, axis batch"
    assert "origins" not in json.loads(printed(capsys, str(path), "-o", "json"))["recipes"][0]


def test_an_invalid_recipe_is_not_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe())
    assert main(["resolve", str(path), "--set", "serving.port=x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("--set:1:14: error: serving.port must be a whole number")


def test_credentials_are_refused_and_not_printed(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGIN", "key:hunter2")
    path.write_text(recipe(model="model: {source: 's3://${env.LOGIN}@bucket/m'}\n"))
    assert main(["resolve", str(path)]) == 2
    assert "hunter2" not in "".join(capsys.readouterr())


def test_a_selection_of_nothing_names_the_nearest_cell(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe())
    assert main(["resolve", f"{path}:cpu/int9"]) == 2
    assert "did you mean 'cpu/int8'?" in capsys.readouterr().err
