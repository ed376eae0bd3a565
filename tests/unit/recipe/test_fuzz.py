"""Whatever a recipe's text becomes, there is a recipe or a list of problems, each at a place that exists, and right.

The seed is fixed, so that every run tries the same. `TRTX_FUZZ=20` tries twenty times as many, at random.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.mutations import Leaf, garbled, leaves_of, regrown
from support.project import RECIPES

from trtx.errors import UsageProblem
from trtx.hardware import support
from trtx.recipe.checks import read_recipe
from trtx.recipe.describe import make_json_schema
from trtx.recipe.document import Document
from trtx.recipe.edits import comments
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.migrate import migrate_text
from trtx.recipe.overrides import NO_OVERRIDES, Overrides
from trtx.recipe.problems import Problem, RecipeInvalid
from trtx.recipe.tree import BREAKS, LOADER

DEPTH = int(os.environ.get("TRTX_FUZZ", "0"))
ENVIRON = {"BATCH": "4", "NAME": "tiny", "EMPTY": ""}
VALIDATOR = jsonschema.Draft202012Validator(make_json_schema())

BASE = """\
schema: trtx/v1
name: base
model: {source: demo://tiny-llama}
vars: {rows: 4, text: {dataset: "demo://docs", samples: "${vars.rows}"}}
quantization:
  fp32: {algorithm: none, calibration: "${vars.text}"}
  int8: {algorithm: int8_sq, calibration: &text {samples: 8, max_length: 64}}
  spare: {algorithm: fp8}
engine:
  limits: {max_batch_size: 8, max_num_tokens: 512, max_seq_len: 256}
targets:
  cpu: {gpu: cpu}
  avx: {gpu: cpu-avx512, quantization: [fp32, int8]}
benchmark:
  workloads:
    chat: {input_tokens: 32, output_tokens: 8, concurrency: [1, 2]}
"""

COMPOSED = """\
schema: trtx/v1
extends: base.yaml   # relative to this file
name: ${env.NAME}-composed
description: costs $${5}
vars:
  batch: ${env.BATCH:-8}
  tokens: 256
quantization:
  spare: null
  int4: {algorithm: int4_wo}
engine:
  limits:
    max_batch_size: ${vars.batch}
    max_num_tokens: ${vars.tokens}
  kv_cache: {tokens_per_block: 16, size: 64MiB}
targets:
  avx: {engine: {limits: {max_batch_size: 2}}}
matrix:
  axes:
    length: {path: engine.limits.max_seq_len, values: [128, 256]}
    cache:
      path: engine.kv_cache.size
      values: {small: 32MiB, large: 64MiB}
  exclude:
    - {length: 128, cache: large}
    - {target: avx, variant: fp32, cache: small}
serving: {port: 8001}
"""

OLD = """\
schema: trtx/v0   # the first
name: tiny
model: {source: demo://tiny-llama}
quantizations:
- id: fp32   # what others are compared with
  algorithm: none
  calibration: &text {samples: 4}
- {id: int8, algorithm: int8_sq, calibration: *text}
engine:
  # What it takes.
  max_batch_size: 8
  dtype: auto
  max_num_tokens: 512   # tokens
targets:
  cpu: {device: cpu, quantizations: [fp32, int8], engine: {max_seq_len: 128}}
"""

PLAIN = {path.name: path.read_text() for path in RECIPES}
EXTENDED = COMPOSED.partition("matrix:")[0]
RECIPES = {**PLAIN, "composed.yaml": COMPOSED, "extended.yaml": EXTENDED, "base.yaml": BASE}
# Composed recipes are where most of the language is.
NAMES = st.sampled_from([*RECIPES, "composed.yaml", "composed.yaml"])


def profile(num_examples: int) -> settings:
    return settings(
        max_examples=num_examples * max(1, DEPTH),
        derandomize=not DEPTH,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Outcome:
    """What reading a recipe came to: the recipe with its warnings, or problems, or one message."""

    loaded: LoadedRecipe | None
    problems: tuple[Problem, ...] = ()
    message: str = ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def read(folder: Path, name: str, changed: Mapping[str, str], overrides: Overrides = NO_OVERRIDES) -> Outcome:
    """Read a recipe of the folder, with the texts of some files changed."""
    for file in {"base.yaml", name, *changed}:
        text = changed.get(file, RECIPES.get(file, ""))
        (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        loaded = read_recipe(folder / name, support, overrides, ENVIRON)
    except RecipeInvalid as error:
        assert any(problem.severity == "error" for problem in error.problems)
        return Outcome(None, tuple(error.problems))
    except UsageProblem as error:
        return Outcome(None, message=error.render())
    return Outcome(loaded, loaded.warnings)


def check_places(outcome: Outcome, folder: Path, overrides: Overrides = NO_OVERRIDES) -> None:
    """Every problem stands at a place that exists, shows that line, and puts its caret into it."""
    for problem in outcome.problems:
        if problem.file in ("--set", "--unset"):
            lines = list(getattr(overrides, problem.file.lstrip("-")))
        else:
            path = Path(problem.file)
            assert path.parent == folder, problem
            raw = path.read_bytes()
            try:
                lines = BREAKS.split(raw.decode("utf-8-sig"))
            except UnicodeDecodeError:
                assert problem.what == "the file is not UTF-8"
                lines = [line.decode(errors="replace") for line in raw.split(b"\n")]
        shown = problem.render()
        assert problem.what and "\n" not in shown.splitlines()[0]
        assert 1 <= problem.line <= len(lines), shown
        line = lines[problem.line - 1]
        assert problem.source in (line, ""), f"{shown}\n{line!r}"
        assert 1 <= problem.col <= len(line) + 1, shown
        assert problem.source or not line.strip() or "credentials" in problem.what, shown
        if problem.source.strip():
            source, caret = shown.split("\n")[1:3]
            assert caret.rstrip().endswith("^"), shown
            assert len(caret.rstrip()) <= max(len(source), caret.index("^") + 1), shown


def test_the_recipes_to_begin_with_are_valid(folder: Path) -> None:
    for name in RECIPES:
        outcome = read(folder, name, {})
        assert outcome.loaded is not None, [problem.render() for problem in outcome.problems]
    assert len(read(folder, "composed.yaml", {}).loaded.points) == 3  # type: ignore[union-attr]


@profile(500)
@given(data=st.data(), name=NAMES)
def test_garbled_text_is_read_or_explained(folder: Path, data: st.DataObject, name: str) -> None:
    file = data.draw(st.sampled_from([name, "base.yaml"])) if name == "composed.yaml" else name
    text = data.draw(garbled(RECIPES[file]))
    check_places(read(folder, name, {file: text}), folder)


@profile(300)
@given(data=st.data(), name=NAMES)
def test_recipes_with_other_values_and_keys_are_read_or_explained(folder: Path, data: st.DataObject, name: str) -> None:
    file = data.draw(st.sampled_from([name, "base.yaml"])) if name == "composed.yaml" else name
    tree = data.draw(regrown(yaml.safe_load(RECIPES[file])))
    style = data.draw(st.sampled_from([None, True, False]))
    text = yaml.safe_dump(tree, default_flow_style=style, sort_keys=False, allow_unicode=True, width=80)
    check_places(read(folder, name, {file: text}), folder)


SETTINGS = ["engine.limits.max_batch_size=4", "engine.kv_cache={size: 1GiB}", "targets.cpu.quantization[0]=fp32"]
SETTINGS += ["vars.batch=2", 'targets."cpu".engine.dtype=float32', "name=x", "matrix.axes.length.values=[128]"]


@profile(300)
@given(data=st.data())
def test_garbled_options_are_read_or_explained(folder: Path, data: st.DataObject) -> None:
    given_set = data.draw(st.lists(st.sampled_from(SETTINGS).flatmap(garbled) | st.text(max_size=9), max_size=2))
    given_unset = data.draw(
        st.lists(st.sampled_from(SETTINGS).flatmap(garbled) | st.sampled_from(SETTINGS), max_size=2)
    )
    overrides = Overrides(tuple(given_set), tuple(text.partition("=")[0] for text in given_unset))
    check_places(read(folder, "composed.yaml", {}, overrides), folder, overrides)


# Keys whose texts must be among those that are known.
CLOSED = ("algorithm", "dtype", "gpu", "api", "schema")


def broken_values(leaf: Leaf) -> list[str]:
    """Texts for a value's place that are wrong there, whatever else the recipe says."""
    wrong = ["[[1]]", "{zzz: 1}"]
    if isinstance(leaf.value, bool):
        return [*wrong, "1", '"true"', "zzz"]
    if isinstance(leaf.value, int | float):
        return [*wrong, "-1", "true", "zzz", '"8"', "010"]
    if leaf.path[-1] in CLOSED or leaf.path[-2:-1] in (("emit",), ("quantization",)):
        wrong.append("zzz")
    return [*wrong, "5", "true", "0.5", "yes", "1:30"]


def effective(outcome: Outcome, folder: Path, file: str, leaf: Leaf) -> bool:
    """Whether a value of a file is part of the recipe at some point of its matrix, as it stands there."""
    assert outcome.loaded is not None
    return any(
        place.kind == "file"
        and place.source.name == str(folder / file)
        and place.value.line == leaf.line
        and not place.note
        for point in outcome.loaded.points
        if (place := point.tree.places.get(leaf.path)) is not None
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_value_is_reported_on_its_line(folder: Path, name: str) -> None:
    for file in ("composed.yaml", "base.yaml") if name == "composed.yaml" else (name,):
        text = RECIPES[file]
        whole = read(folder, name, {})
        tried = 0
        for leaf in leaves_of(text):
            is_free = "llm_options" in leaf.path  # Only a release knows what is wrong there.
            if is_free or not effective(whole, folder, file, leaf) or "${" in str(leaf.value):
                continue
            for wrong in broken_values(leaf):
                tried += 1
                changed = text[: leaf.start] + wrong + text[leaf.end :]
                outcome = read(folder, name, {file: changed})
                check_places(outcome, folder)
                places = {(Path(problem.file).name, problem.line) for problem in outcome.problems}
                shown = "\n".join(problem.render() for problem in outcome.problems)
                assert (file, leaf.line) in places, f"{leaf.path} = {wrong}\n{shown}"
        assert tried > 20


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_key_is_reported_on_its_line(folder: Path, name: str) -> None:
    text = RECIPES[name]
    whole = read(folder, name, {})
    tried = 0
    for leaf in leaves_of(text):
        has_free_keys = leaf.path[0] == "vars" or "values" in leaf.path or "llm_options" in leaf.path
        if leaf.key_start is None or has_free_keys or not effective(whole, folder, name, leaf):
            continue
        tried += 1
        added = (
            "zzz: 1, "
            if leaf.is_flow
            else f"zzz: 1\n{' ' * (leaf.key_start - text.rfind(chr(10), 0, leaf.key_start) - 1)}"
        )
        changed = text[: leaf.key_start] + added + text[leaf.key_start :]
        outcome = read(folder, name, {name: changed})
        check_places(outcome, folder)
        line = changed.count("\n", 0, leaf.key_start) + 1
        unknown = [
            problem for problem in outcome.problems if re.match("(unknown key|there is no axis) 'zzz'", problem.what)
        ]
        assert [problem.line for problem in unknown] == [line], leaf.path
    assert tried > 6


@profile(300)
@given(data=st.data(), name=st.sampled_from([*PLAIN, "base.yaml"]))
def test_the_json_schema_and_the_models_agree(data: st.DataObject, name: str) -> None:
    tree = data.draw(regrown(yaml.safe_load(RECIPES[name].replace("${vars.text}", "{}").replace("${vars.rows}", "4"))))
    words = json.dumps(tree)
    # References and axes come in between, and JSON takes 1.0 for the integer that it equals.
    assume("${" not in words and "matrix" not in tree and "extends" not in tree and ".0" not in words)
    assume("null" not in words)
    try:
        Document.model_validate(tree)
        accepted = True
    except ValidationError:
        accepted = False
    assert VALIDATOR.is_valid(tree) is accepted


@profile(300)
@given(data=st.data(), name=st.sampled_from([name for name in RECIPES if name != "composed.yaml"]))
def test_the_json_schema_accepts_whatever_loads(folder: Path, data: st.DataObject, name: str) -> None:
    # Without a matrix, which may put something else in the place of a value that is wrong.
    text = data.draw(garbled(RECIPES[name], most=1))
    if read(folder, name, {name: text}).loaded is not None:
        errors = [error.message for error in VALIDATOR.iter_errors(yaml.load(text, Loader=LOADER))]  # noqa: S506
        assert errors == []


@profile(200)
@given(data=st.data())
def test_a_garbled_old_recipe_is_migrated_whole_or_refused(data: st.DataObject) -> None:
    text = data.draw(garbled(OLD, most=2))
    try:
        migrated = migrate_text(Path("old.yaml"), text)
    except RecipeInvalid as error:
        assert all(problem.what for problem in error.problems)
        return
    assert comments(migrated.after) == comments(text)
    assert migrated.after == migrated.before or migrate_text(Path("old.yaml"), migrated.after).is_current
