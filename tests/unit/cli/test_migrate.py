"""`trtx migrate` writes valid recipes or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.malformed import recipe

from trtx.cli.main import main
from trtx.recipe.load import load_recipe

OLD = """\
schema: trtx/v0  # the first
name: tiny
model: {source: demo://tiny-llama}
quantizations:
  - id: fp32
    algorithm: none
targets:
  cpu: {device: cpu}
"""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("old.yaml")
    path.write_text(OLD)
    return path


def test_an_old_recipe_becomes_one_that_loads(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "old.yaml"]) == 0
    assert load_recipe(old).recipe.quantization["fp32"].algorithm == "none"
    assert old.read_text().startswith("schema: trtx/v1  # the first\n")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("old.yaml migrated from trtx/v0 to trtx/v1:\n")
    assert main(["migrate", "old.yaml"]) == 0
    assert capsys.readouterr().err == "old.yaml is trtx/v1 already\n"


def test_loading_an_old_recipe_names_this_verb(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "old.yaml"]) == 2
    assert "fix: run `trtx migrate old.yaml`" in capsys.readouterr().err


def test_a_dry_run_shows_the_change_and_makes_none(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--diff", "old.yaml"]) == 0
    out, err = capsys.readouterr()
    assert (out, old.read_text()) == ("", OLD)
    assert "old.yaml would be migrated" in err
    assert "-    algorithm: none" not in err
    assert "-  - id: fp32\n+quantization:\n+  fp32:\n" in err


def test_mode_link_and_byte_order_mark_stay(old: Path) -> None:
    old.write_bytes(b"\xef\xbb\xbf" + OLD.replace("\n", "\r\n").encode())
    old.chmod(0o640)
    link = Path("link.yaml")
    link.symlink_to(old)
    assert main(["migrate", "link.yaml"]) == 0
    assert link.is_symlink()
    assert old.stat().st_mode & 0o777 == 0o640
    raw = old.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfschema: trtx/v1")
    assert raw.count(b"\n") == raw.count(b"\r\n")


def test_of_several_files_all_are_written_or_none(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(OLD.replace("none", "nnoe"))
    assert main(["migrate", "old.yaml", "bad.yaml"]) == 2
    assert old.read_text() == OLD
    assert "nnoe" in capsys.readouterr().err
    Path("current.yaml").write_text(recipe())
    assert main(["migrate", "old.yaml", "current.yaml", "old.yaml", "-o", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["schema"], made["written"]) == ("trtx.migrate/v1", True)
    assert [(file["file"], file["from"], file["changed"]) for file in made["files"]] == [
        ("old.yaml", "trtx/v0", True),
        ("current.yaml", "trtx/v1", False),
    ]
    assert made["files"][0]["diff"].startswith("--- old.yaml (trtx/v0)\n")
    assert Path("current.yaml").read_text() == recipe()


def test_json_of_a_dry_run_says_that_nothing_was_written(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--diff", "old.yaml", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["written"], err, old.read_text()) == (False, "", OLD)


def test_a_file_that_is_not_there_is_named(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "oId.yaml"]) == 2
    assert "did you mean 'old.yaml'?" in capsys.readouterr().err
