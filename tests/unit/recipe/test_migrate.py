"""Recipes of older versions are rewritten where the language changed and nowhere else; doubtful results are refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from trtx.recipe import migrate
from trtx.recipe.edits import Edit, apply_edits, comments
from trtx.recipe.load import parse_recipe
from trtx.recipe.migrate import migrate_text
from trtx.recipe.problems import RecipeInvalid
from trtx.recipe.schema import OLDER, SCHEMA

PATH = Path("recipe.yaml")
HEAD = "schema: trtx/v0\nname: tiny\nmodel: {source: demo://tiny-llama}\n"
VARIANTS = "quantizations:\n  - id: fp32\n    algorithm: none\n"
TARGETS = "targets:\n  cpu: {device: cpu}\n"

WHOLE = """\
# yaml-language-server: $schema=recipe.schema.json
schema: trtx/v0   # the first
name: tiny
description: costs ${5} a day
model: {source: demo://tiny-llama}

# The variants.
quantizations:
- id: fp32        # what others are compared with
  algorithm: none
  # on four rows
  calibration: &text {samples: 4}
-   # the dash has a comment
  algorithm: int8_wo
  id: "int8"   # in quotes
  calibration: *text
  exclude:
  - lm_head
- {algorithm: int4_wo, id: 'int4'}   # a flow mapping
- &last
  id: int4-awq
  algorithm: int4_awq

# The engine.
engine:
  # What it takes.
  max_batch_size: 8     # sequences
  dtype:   auto
  # Tokens,
  # in one step.
  max_num_tokens: 512
  kv_cache: {size: 1GiB,reuse: false}   # spaces as they are

  max_seq_len: 256
targets:
  cpu: {device: cpu, quantizations: [fp32, int8]}
  other:
    device: "cpu"
    engine: { max_batch_size: 2, dtype: auto, max_seq_len: 128 }
# The end.
"""

MIGRATED = """\
# yaml-language-server: $schema=recipe.schema.json
schema: trtx/v1   # the first
name: tiny
description: costs $${5} a day
model: {source: demo://tiny-llama}

# The variants.
quantization:
  fp32:        # what others are compared with
    algorithm: none
    # on four rows
    calibration: &text {samples: 4}
  "int8":   # the dash has a comment
    algorithm: int8_wo
    # in quotes
    calibration: *text
    exclude:
    - lm_head
  'int4': {algorithm: int4_wo}   # a flow mapping
  int4-awq: &last
    algorithm: int4_awq

# The engine.
engine:
  # What it takes.
  limits:
    max_batch_size: 8     # sequences
    # Tokens,
    # in one step.
    max_num_tokens: 512
    max_seq_len: 256
  dtype:   auto
  kv_cache: {size: 1GiB,reuse: false}   # spaces as they are

targets:
  cpu: {gpu: cpu, quantization: [fp32, int8]}
  other:
    gpu: "cpu"
    engine: { limits: {max_batch_size: 2, max_seq_len: 128}, dtype: auto }
# The end.
"""


def after(text: str) -> str:
    return migrate_text(PATH, text).after


def problems_of(text: str) -> list[str]:
    with pytest.raises(RecipeInvalid) as refused:
        migrate_text(PATH, text)
    return [problem.render() for problem in refused.value.problems]


def test_only_what_the_language_changed_is_rewritten() -> None:
    made = migrate_text(PATH, WHOLE)
    assert made.after == MIGRATED
    assert (made.version, made.is_current, len(made.changes)) == ("trtx/v0", False, 4)
    recipe = parse_recipe(PATH, made.after).recipe
    assert list(recipe.quantization) == ["fp32", "int8", "int4", "int4-awq"]
    assert recipe.quantization["int8"].calibration.samples == 4
    assert recipe.engine.limits.max_seq_len == 256
    assert recipe.description == "costs ${5} a day"


def test_a_migrated_recipe_is_current_and_stays_as_it_is() -> None:
    made = migrate_text(PATH, MIGRATED)
    assert (made.is_current, made.after, made.changes, made.diff()) == (True, MIGRATED, (), "")


def test_the_diff_names_both_versions() -> None:
    lines = migrate_text(PATH, WHOLE).diff().splitlines()
    assert lines[:2] == ["--- recipe.yaml (trtx/v0)", "+++ recipe.yaml (trtx/v1)"]
    assert "+schema: trtx/v1   # the first" in lines
    short = migrate_text(PATH, (HEAD + VARIANTS + TARGETS).rstrip("\n")).diff()
    assert short.endswith("\n\\ No newline at end of file\n")


@pytest.mark.parametrize(
    ("written", "rewritten"),
    [
        ("quantizations: [{id: a, algorithm: none}]\n", "quantization: {a: {algorithm: none}}\n"),
        (
            "quantizations: [ {algorithm: none ,id: a}, {algorithm: fp8, id: b,}, ]\n",
            "quantization: { a: {algorithm: none }, b: {algorithm: fp8, }, }\n",
        ),
        (
            "quantizations: [\n  {id: a,  # one\n   algorithm: none},\n"
            "  # two\n  {algorithm: fp8,  # , three\n   id: b}\n]\n",
            "quantization: {\n  a: { # one\n   algorithm: none},\n  # two\n  b: {algorithm: fp8  # , three\n   }\n}\n",
        ),
        ('"quantizations":\n- "id": a\n  algorithm: none\n', '"quantization":\n  a:\n    algorithm: none\n'),
        (
            "quantizations:\n    -   id:   a # x\n        algorithm: none\n",
            "quantization:\n    a: # x\n        algorithm: none\n",
        ),
        (
            "quantizations:\n  - algorithm: none\n    id: a\n",
            "quantization:\n  a:\n    algorithm: none\n",
        ),
        (
            "quantizations:\n  -\n    id: a\n    algorithm: none\n  - &b {id: b, algorithm: none}\n",
            "quantization:\n  a:\n    algorithm: none\n  b: &b {algorithm: none}\n",
        ),
        (
            "quantizations:\n- id: a\n  algorithm: none\n  exclude: [\n    x, # y\n    z]\n  # the end\n\n# not mine\n",
            "quantization:\n  a:\n    algorithm: none\n    exclude: [\n      x, # y\n      z]\n"
            "  # the end\n\n# not mine\n",
        ),
        (
            "quantizations:\n- {id: a, algorithm: none}\n- <<: {algorithm: fp8, kv_cache: fp8}\n  id: b\n",
            "quantization:\n  a: {algorithm: none}\n  b:\n    <<: {algorithm: fp8, kv_cache: fp8}\n",
        ),
    ],
)
def test_variants_are_named_in_every_style_of_list(written: str, rewritten: str) -> None:
    made = after(HEAD + written + TARGETS)
    assert made == after(HEAD + VARIANTS + TARGETS).replace("quantization:\n  fp32:\n    algorithm: none\n", rewritten)


@pytest.mark.parametrize(
    ("written", "rewritten"),
    [
        ("engine:\n    max_seq_len: 64\n", "engine:\n    limits:\n      max_seq_len: 64\n"),
        (
            "engine: {max_num_tokens: &n 64, dtype: auto, max_seq_len: *n}\n",
            "engine: {limits: {max_num_tokens: &n 64, max_seq_len: *n}, dtype: auto}\n",
        ),
        (
            "engine: {\n  dtype: auto, # a\n  max_seq_len: 64, # b\n  max_num_tokens: 64 # c\n}\n",
            "engine: {\n  dtype: auto, # a\n  limits: {max_seq_len: 64, max_num_tokens: 64} # b\n # c\n}\n",
        ),
        ("engine: &e {max_seq_len: 64}\n", "engine: &e {limits: {max_seq_len: 64}}\n"),
    ],
)
def test_limits_are_grouped_in_every_style_of_mapping(written: str, rewritten: str) -> None:
    made = after(HEAD + VARIANTS + written + TARGETS)
    assert rewritten in made or comments(made) == comments(written), made
    assert parse_recipe(PATH, made).recipe.engine.limits.max_seq_len == 64


def test_an_engine_that_targets_share_is_rewritten_once() -> None:
    made = after(HEAD + VARIANTS + "engine: &e {max_seq_len: 64}\ntargets:\n  cpu: {device: cpu, engine: *e}\n")
    assert made.count("limits") == 1
    assert parse_recipe(PATH, made).recipe.engine_for("cpu").limits.max_seq_len == 64


def test_line_ends_long_lines_and_a_missing_last_newline_stay() -> None:
    long = "x" * 300 + " " + "y" * 300
    text = (HEAD + f'description: "{long}"\n' + VARIANTS + "engine:\n  max_seq_len: 64\n" + TARGETS)[:-1]
    made = after(text.replace("\n", "\r\n"))
    assert made.count("\n") == made.count("\r\n") == text.count("\n") + 1
    assert long in made
    assert not made.endswith("\n")
    assert made.replace("\r\n", "\n") == after(text)


def test_texts_keep_their_style_and_their_dollars() -> None:
    text = HEAD + "description: |2-  # kept\n    a ${b}\n\n    c $${d}\n" + VARIANTS + TARGETS
    made = after(text)
    assert "description: |2-  # kept\n    a $${b}\n\n    c $$${d}\n" in made


def test_no_comment_of_the_file_is_lost() -> None:
    assert comments(after(WHOLE)) == comments(WHOLE)
    assert sum(comments(WHOLE).values()) == len(re.findall("# ", WHOLE))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("schema: trtx/v9\nname: a\n", ("1:9", "trtx/v9 cannot be migrated", "did you mean 'trtx/v", "newer trtx")),
        ("schema: kubernetes\n", ("1:9", "known: trtx/v0, trtx/v1")),
        ("name: a\n", ("1:1", "'schema' is missing", "begin with `schema: trtx/v0`")),
        ("schema: trtx/v0\nname: a\nname: b\n", ("3:1", "given twice")),
        ("schema: [\n", ("this is not YAML",)),
        (HEAD + TARGETS, ("1:1", "'quantizations' must be a list", "says that it is trtx/v0")),
        (HEAD + "quantizations: [{algorithm: none}]\n", ("4:17", "has no id")),
        (
            HEAD + "quantizations: [{id: a, algorithm: none}, {id: a, algorithm: none}]\n",
            ("4:48", "two items of 'quantizations' have the id 'a'"),
        ),
        (
            HEAD + VARIANTS.replace("none", "nnoe") + TARGETS,
            ("recipe.yaml as trtx/v1 (not written):6:16", "nnoe", "did you mean 'none'?"),
        ),
        (HEAD + VARIANTS + TARGETS + "tragets: {}\n", ("(not written)", "unknown key 'tragets'")),
    ],
)
def test_what_cannot_become_a_valid_recipe_is_refused(text: str, parts: tuple[str, ...]) -> None:
    (problem,) = problems_of(text)
    assert [part for part in parts if part not in problem] == [], problem


@pytest.mark.parametrize(
    "text",
    [
        # A merge is shallow: with limits in a mapping of their own, one of them would hide the others.
        HEAD + VARIANTS + "engine: &e {max_seq_len: 64, max_num_tokens: 64}\n"
        "targets:\n  cpu: {device: cpu, engine: {<<: *e, max_seq_len: 32}}\n",
        # An item without braces of its own has nowhere to go.
        HEAD + "quantizations: [id: a]\n" + TARGETS,
    ],
)
def test_a_file_whose_meaning_would_change_is_refused_with_what_to_do_by_hand(text: str) -> None:
    (problem,) = problems_of(text)
    assert "1:9: error: this file cannot be rewritten" in problem
    assert "`targets.*.device` → `targets.*.gpu`" in problem


def test_a_migration_that_loses_a_comment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(layout: object) -> list[Edit]:
        start = WHOLE.index("# The end.")
        return [Edit(start, start + len("# The end.\n"), "")]

    module = SimpleNamespace(convert=dict, STEPS=(lose,), CHANGES={}, __doc__="")
    monkeypatch.setattr(migrate.importlib, "import_module", lambda name: module)
    (problem,) = problems_of(WHOLE)
    assert "with its comments and layout" in problem


def test_every_older_version_has_a_migration_to_the_next() -> None:
    assert tuple(migrate.MIGRATIONS) == OLDER
    assert (*OLDER, SCHEMA) == migrate.VERSIONS


def test_edits_must_not_overlap() -> None:
    assert apply_edits("abc", [Edit(1, 2, "x"), Edit(1, 1, "-"), Edit(3, 3, "!")]) == "a-xc!"
    with pytest.raises(ValueError, match="overlap at 1"):
        apply_edits("abc", [Edit(0, 2, ""), Edit(1, 3, "")])
