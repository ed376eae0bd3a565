"""The reference page is made from the models, complete, and true in what it says by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from trtx.cli.main import main
from trtx.errors import BY_NAME
from trtx.hardware.gpus import GPUS
from trtx.recipe.describe import make_json_schema
from trtx.recipe.document import Document
from trtx.recipe.lookup import fields_of
from trtx.recipe.parts import Part
from trtx.recipe.reference import make_reference
from trtx.recipe.unavailable import RULES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "recipe.md").read_text()
SOURCES = [path for folder in ("pipeline/trtx", "runners") for path in (ROOT / folder).rglob("*.py")]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_committed_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--reference"]) == 0
    assert capsys.readouterr().out == PAGE, "run: trtx schema --reference > docs/recipe.md"


def test_the_page_is_json_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--reference", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "trtx.reference/v1", "markdown": PAGE}


def models(model: type[Part]) -> set[type[Part]]:
    return {model}.union(*(models(inner) for inner in model.__subclasses__()))


def test_every_key_of_the_language_has_a_row_with_its_help() -> None:
    rows = {
        (match[1], re.sub(r" \*Redoes.*", "", match[2]).replace("\\", ""))
        for match in re.finditer(r"^\| \[?`(\w+)`[^|]*\|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    }
    for model in models(Part):
        is_written = not model.__name__.endswith("Override") and model is not Part
        if model.__module__.startswith("trtx.recipe.") and is_written:
            for key, field in fields_of(model).items():
                assert (key, field.description) in rows, f"{model.__name__}.{key}"


def test_defaults_bounds_choices_and_what_is_required_are_shown() -> None:
    for line in (
        "| `max_batch_size` | whole number, at least 1 | `8` | Sequences in one step. *Redoes build.* |",
        "| `source` | URL | **required** |",
        "| `memory_fraction` | number, more than 0, at most 0.95 | `0.9` |",
        "| `emit` | list of `compose`, `kubernetes`†, `triton` | `[compose]` |",
        "| `reuse` | `false`, `true` | `true` |",
        "| `pipeline` | whole number, at least 1, more than 1‡ | `1` |",
        "| [`gates`](#gates) † |",
        "| `size` | [size](#units) |  |",
    ):
        assert line in PAGE, line


MARK = {None: "†", "inductor": "‡"}


def test_everything_that_this_version_or_a_backend_refuses_is_marked() -> None:
    for rule in RULES:
        key = next(part for part in reversed(rule.path) if part != "*")
        lines = [line for line in PAGE.splitlines() if re.match(rf"\| \[?`{key}`", line)]
        assert any(MARK[rule.backend] in line for line in lines), rule.path


def test_without_effects_nothing_is_said_about_them() -> None:
    assert "*Redoes" not in make_reference(GPUS)


def test_every_link_inside_the_page_leads_to_a_heading() -> None:
    headings = {
        re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) - headings == set()


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_is_of_the_language(example: str) -> None:
    data = yaml.safe_load(example)
    if "schema" not in data:
        data = {"schema": "trtx/v1", "extends": "base.yaml", **data}
    jsonschema.Draft202012Validator(make_json_schema()).validate(data)


def test_every_variable_of_the_environment_that_trtx_reads_is_listed() -> None:
    read = {
        name
        for path in SOURCES
        for name in re.findall(r"\"((?:TRTX|HF|HUGGING|GITHUB_STEP)_[A-Z_]+|NO_COLOR|DOCKER_HOST)\"", path.read_text())
    }
    # How a run's own processes talk to each other, and what a sanitized environment is given.
    internal = {"TRTX_PARENT_PID", "TRTX_ATTEMPT", "HF_DATASETS_OFFLINE", "TRTX_TRTLLM_PROBE"}
    assert {name for name in read - internal if f"`{name}`" not in PAGE} == set()


def test_every_exit_code_is_listed() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert listed == {0, 5} | {cls.exit_code for cls in BY_NAME.values()}


def test_exactly_the_documents_that_verbs_print_are_listed() -> None:
    verbs = "\n".join(path.read_text() for path in (ROOT / "pipeline/trtx/cli").glob("*.py"))
    made = set(re.findall(r"\"(trtx\.[a-z.-]+/v\d+)\"", verbs)) | {"trtx.plan/v1", "trtx.probe/v1", "trtx.serve/v1"}
    listed = set(re.findall(r"`(trtx\.[a-z.-]+/v\d+)`", PAGE.partition("## JSON output")[2]))
    assert {name for name in made if not name.startswith("trtx.cache.")} == listed - {"trtx.cache.ls/v1"}


def test_the_page_shows_all_top_level_keys_as_links_or_scalars() -> None:
    overview = PAGE.partition("## All keys")[2].partition("## `model`")[0]
    for key in fields_of(Document):
        assert re.search(rf"^\| \[?`{key}`", overview, re.MULTILINE), key
