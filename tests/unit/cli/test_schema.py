"""`trtx schema` prints a JSON Schema and nothing else."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml
from support.malformed import recipe

from trtx.cli.main import main


@pytest.mark.parametrize("arguments", [[], ["-o", "json"]])
def test_the_printed_schema_checks_recipes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    validator = jsonschema.Draft202012Validator(json.loads(out))
    assert validator.is_valid(yaml.safe_load(recipe()))
    assert not validator.is_valid(yaml.safe_load(recipe(extra="nmae: 1\n")))
