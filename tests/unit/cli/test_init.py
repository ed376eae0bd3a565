"""`trtx init` writes a recipe that works as it is, and never over a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtx.cli.main import main
from trtx.hardware import support
from trtx.recipe.checks import read_recipe
from trtx.recipe.describe import ID


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "My Models"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


def test_the_recipe_is_valid_and_named_after_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    loaded = read_recipe(Path("recipe.yaml"), support)
    assert (loaded.recipe.name, loaded.warnings) == ("my-models", ())
    assert loaded.text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert json.loads(Path("recipe.schema.json").read_text())["$id"] == ID
    out, err = capsys.readouterr()
    assert (out, err) == ("", "wrote recipe.yaml and recipe.schema.json\nnext: trtx plan recipe.yaml\n")


def test_json_says_what_was_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema": "trtx.init/v1",
        "name": "my-models",
        "recipe": "recipe.yaml",
        "json_schema": "recipe.schema.json",
    }
    assert err == ""


def test_all_variants_are_measured_on_the_same_text(folder: Path) -> None:
    main(["init"])
    variants = read_recipe(Path("recipe.yaml"), support).recipe.quantization.values()
    assert len({variant.calibration for variant in variants}) == 1


@pytest.mark.parametrize(
    ("arguments", "path", "name"),
    [
        (["chat.yaml"], "chat.yaml", "chat"),
        (["sub"], "sub/recipe.yaml", "sub"),
        (["new/deep/one.yml"], "new/deep/one.yml", "one"),
        (["x.yaml", "--name", "llama-3.1"], "x.yaml", "llama-3.1"),
    ],
)
def test_path_and_name_can_be_given(folder: Path, arguments: list[str], path: str, name: str) -> None:
    Path("sub").mkdir()
    assert main(["init", *arguments]) == 0
    assert read_recipe(Path(path), support).recipe.name == name


def test_an_existing_recipe_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("mine")
    assert main(["init"]) == 2
    assert Path("recipe.yaml").read_text() == "mine"
    assert "recipe.yaml already exists" in capsys.readouterr().err
    assert not Path("recipe.schema.json").exists()


def test_a_foreign_file_in_the_schemas_place_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.schema.json").write_text('{"$id": "other"}')
    assert main(["init"]) == 2
    assert Path("recipe.schema.json").read_text() == '{"$id": "other"}'
    assert not Path("recipe.yaml").exists()
    assert "is not a recipe schema" in capsys.readouterr().err


def test_an_older_schema_of_ours_is_renewed(folder: Path) -> None:
    Path("recipe.schema.json").write_text(json.dumps({"$id": ID}))
    assert main(["init"]) == 0
    assert "properties" in json.loads(Path("recipe.schema.json").read_text())


def test_a_bad_name_is_refused_with_a_better_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--name", "My Model"]) == 2
    assert "try --name my-model" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_file_of_another_kind_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "recipe.txt"]) == 2
    assert "does not end in .yaml" in capsys.readouterr().err


def test_a_folder_without_letters_still_gets_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "§§").mkdir()
    monkeypatch.chdir(tmp_path / "§§")
    assert main(["init"]) == 0
    assert read_recipe(Path("recipe.yaml"), support).recipe.name == "my-model"
