"""`trtx validate` shows everything that is wrong, to people on stderr and to tools on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.malformed import recipe

from trtx.cli.main import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_valid_recipe_lists_its_engines_and_the_next_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe())
    assert main(["validate", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"ok: {path} describes 2 engines: cpu/fp32, cpu/int8\nnext: trtx plan {path}\n"


def test_problems_are_printed_without_a_traceback(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(extra="nmae: 1\n", serving="serving: {port: 0}\n"))
    assert main(["validate", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{path}:11:17: error: serving.port must be at least 1, not 0" in err
    assert "did you mean 'name'?" in err
    assert err.endswith(f"error: 2 problems in {path}\n")
    assert "Traceback" not in err


def test_warnings_are_printed_and_do_not_fail(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(runners="runners: {a: {type: local}}\n"))
    assert main(["validate", str(path)]) == 0
    assert f"{path}:11:11: warning: runners.a is used by no target" in capsys.readouterr().err


def test_tools_get_json_alone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(runners="runners: {a: {type: local}}\n"))
    assert main(["validate", str(path), "-o", "json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == ""
    assert (answer["schema"], answer["valid"], answer["cells"]) == ("trtx.validate/v1", True, ["cpu/fp32", "cpu/int8"])
    assert [(p["severity"], p["line"], p["col"], p["path"]) for p in answer["problems"]] == [
        ("warning", 11, 11, "runners.a")
    ]


def test_tools_get_the_problems_of_an_invalid_recipe_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe(name="name: A\n"))
    assert main(["validate", str(path), "-o", "json"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    (problem,) = json.loads(out)["problems"]
    assert problem["why"].startswith("names stand in paths and selectors: lower-case letters")
    assert problem == {
        "file": str(path),
        "line": 2,
        "col": 7,
        "what": 'name cannot be "A"',
        "why": problem["why"],
        "fix": "write 'a'",
        "severity": "error",
        "source": "name: A",
        "path": "name",
        "note": "",
    }


def test_a_missing_file_is_a_usage_error(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(path)]) == 2
    assert f"error: there is no recipe {path}" in capsys.readouterr().err


def test_options_and_a_selection_are_taken(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(recipe())
    assert main(["validate", f"{path}:cpu/int8", "--set", "serving.port=1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == ["cpu/int8"]
    assert main(["validate", str(path), "--set", "serving.port=0", "--unset", "nmae"]) == 2
    err = capsys.readouterr().err
    assert "--set:1:14: error: serving.port must be at least 1, not 0" in err
    assert err.endswith("error: 2 problems in --set and --unset\n")


def test_every_point_is_checked_against_its_own_model(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axis = "{path: engine.limits.max_seq_len, values: [256, 512, 1024]}"
    path.write_text(recipe(extra=f"matrix: {{axes: {{seq: {axis}}}}}\n"))
    assert main(["validate", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{path}:11:75: error: max_seq_len 1024 is more than the model's" in err
