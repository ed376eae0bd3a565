"""The JSON Schema accepts what the loader accepts and refuses what it refuses, as far as a schema can say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.malformed import CASES, Malformed, engine, recipe, target, variant, workload
from support.malformed_composition import COMPOSED

from trtx.hardware.gpus import GPUS
from trtx.recipe.describe import ID, SHARED, make_json_schema
from trtx.recipe.tree import DELETE, Unreadable, read_tree

ROOT = Path(__file__).parents[3]
VALIDATOR = jsonschema.Draft202012Validator(make_json_schema())
EXTENDS = "schema: trtx/v1\nextends: base.yaml\n"


def accepts(text: str) -> bool:
    return VALIDATOR.is_valid(yaml.safe_load(text))


def sections(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: made for name, made in schema["$defs"].items() if name not in (*SHARED, "complete")}


def test_the_schema_is_valid_closed_and_named() -> None:
    schema = make_json_schema(GPUS)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert (schema["$id"], schema["$schema"].endswith("2020-12/schema")) == (ID, True)
    for name, definition in sections(schema).items():
        assert definition["additionalProperties"] is False, name
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Target"]["properties"]["gpu"]["examples"] == list(GPUS)


def test_editors_find_the_keys_of_every_section_and_their_help_where_they_look_first() -> None:
    schema = make_json_schema(GPUS)
    for name, definition in {"the file": schema, **sections(schema)}.items():
        assert definition["properties"], name
        for key, node in definition["properties"].items():
            described = node if "description" in node or "$ref" not in node else schema["$defs"][node["$ref"][8:]]
            assert described["description"], f"{name}.{key}"


def test_the_committed_schema_is_up_to_date() -> None:
    committed = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert committed == make_json_schema(GPUS), "run: trtx schema > recipes/recipe.schema.json"


@pytest.mark.parametrize(
    "text",
    [
        engine("  limits: {max_batch_size: '${vars.batch}'}"),
        engine("  limits: ${vars.limits}"),
        engine("  kv_cache: {reuse: '${env.REUSE:-false}'}"),
        engine("  kv_cache: {size: '${vars.gib}GiB'}"),
        engine("  kv_cache: {memory_fraction: '${vars.share}', tokens_per_block: '${vars.tokens}'}"),
        engine("  dtype: ${vars.dtype}"),
        engine("  dtype: b${vars.kind}16"),
        recipe(engine="engine: ${vars.engine}\n"),
        recipe(name="name: tiny-${vars.kind}\n"),
        recipe(model="model: {source: '${env.MODEL}'}\n"),
        recipe(model="model: ${vars.model}\n"),
        recipe(quantization="quantization: ${vars.variants}\n"),
        recipe(package="package: {base: 'python:${vars.tag}', emit: ['${vars.emit}']}\n"),
        recipe(runners="runners: {a: {type: '${vars.kind}'}}\n"),
        target(", quantization: '${vars.variants}', runner: '${vars.runner}'"),
        target(", quantization: [fp32, '${vars.variant}']"),
        variant(", calibration: '${vars.text}', exclude: '${vars.exclude}'"),
        workload("input_tokens: '${vars.n}', output_tokens: 8, concurrency: ['${vars.n}', 2]"),
        workload("input_tokens: 1, output_tokens: 8, concurrency: '${vars.levels}'"),
        engine("  limits: {max_batch_size: '${env.BATCH:-${vars.sizes.small}}'}"),
        engine("  dtype: ${env.DTYPE:-}"),
    ],
)
def test_a_value_of_any_type_may_be_a_reference(text: str) -> None:
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        engine("  limits: {max_batch_size: '8'}"),
        engine("  limits: {max_batch_size: '1${vars.batch}'}"),
        engine("  limits: {max_batch_size: '$${vars.batch}'}"),
        engine("  limits: {max_batch_size: '${vars.batch}0'}"),
        engine("  limits: 'text'"),
        engine("  kv_cache: {size: '$${vars.gib}GiB'}"),
        engine("  dtype: $${vars.dtype}"),
        engine("  dtype: ${var.dtype}"),
        engine("  dtype: ${vars.}"),
        engine("  dtype: ${env.A B}"),
        engine("  limits: {max_batch_size: '${vars.a}${vars.b}'}"),
        recipe(extra="matrix: ${vars.matrix}\n"),
        recipe(extra="vars: ${vars.other}\n"),
        recipe(extra="matrix: {axes: {a: {path: engine.dtype, values: '${vars.v}'}}}\n"),
        recipe(extra="matrix: {axes: {a: {path: engine.dtype, values: ['${vars.v}']}}}\n"),
        recipe(extra="matrix: {axes: {a: {path: engine.dtype, values: [[1]]}}}\n"),
        recipe(schema="schema: ${vars.schema}\n"),
        target(", quantization: fp32"),
    ],
)
def test_what_is_no_reference_is_checked_as_before(text: str) -> None:
    assert not accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        EXTENDS,
        EXTENDS + "extends: [a.yaml, b.yaml]\n",
        EXTENDS + "model: {revision: main}\nquantization: {fp32: null, int8: {kv_cache: auto}}\n",
        EXTENDS + "engine: {limits: {max_batch_size: null}, kv_cache: null}\nbenchmark: null\n",
        EXTENDS + "targets: {cpu: {quantization: null}}\nrunners: {a: null, b: {partition: gpu}}\n",
        EXTENDS + "matrix: {axes: {batch: null}, exclude: null}\nvars: {x: null}\n",
        EXTENDS + "matrix: null\nvars: null\n",
        "extends: base.yaml\n",
    ],
)
def test_a_file_that_extends_may_leave_out_and_delete(text: str) -> None:
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        EXTENDS + "engine: {limit: {}}\n",
        EXTENDS + "quantization: {fp32: {algorithm: gguf}}\n",
        EXTENDS + "engine: {limits: {max_batch_size: 0}}\n",
        EXTENDS + "targets: {cpu: {quantization: [null]}}\n",
        EXTENDS + "gates: {slo: [null]}\n",
        EXTENDS + "runners: {a: {partition: 5}}\n",
        "schema: trtx/v1\nextends: 5\n",
        "schema: trtx/v1\nextends: []\n",
    ],
)
def test_a_file_that_extends_is_checked_in_all_else(text: str) -> None:
    assert not accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        recipe(extra="matrix: {axes: {a: {path: engine.dtype, values: [auto, float32]}}, exclude: [{a: auto}]}\n"),
        recipe(extra="matrix: {axes: {a: {path: engine.limits, values: {x: '${vars.x}', y: {max_seq_len: 9}}}}}\n"),
        recipe(model="", extra="matrix: {axes: {m: {path: model.source, values: ['demo://tiny-llama']}}}\n"),
    ],
)
def test_an_axis_may_hold_references_and_give_what_is_missing(text: str) -> None:
    assert accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        recipe(quantization="quantization: {fp32: null}\n"),
        recipe(extra="benchmark: null\n"),
        recipe(extra="vars: {a: {b: null}}\n"),
        recipe(targets="targets: {cpu: {quantization: [fp32]}}\n"),
        recipe(extra="gates: {slo: [{workload: chat}]}\n"),
        recipe(runners="runners: {a: {partition: gpu}}\n"),
        recipe(extra="matrix: {exclude: [{a: 1}]}\n"),
        recipe(name="", extra="matrix: {axes: {a: {path: engine.dtype, values: [auto]}}}\n"),
    ],
)
def test_a_file_that_stands_alone_must_be_whole(text: str) -> None:
    assert not accepts(text)


# What of the malformed compositions a schema can say, which sees one file and neither the environment nor options.
SEEN = {
    "an absolute base",
    "a base at home",
    "a base on the web",
    "a base by variable",
    "no base",
    "a null as base",
    "a number as base",
    "one wrong base",
    "a wrong value over a base",
    "deleting in a list",
    "problems of all files at once",
    "a reference that is not closed",
    "a reference to nothing",
    "a reference with spaces",
    "a mistyped kind",
    "a default of a variable",
    "a wrong form of a default",
    "a variable's bad name",
    "variables that are a list",
    "a matrix of nothing",
    "a matrix that is a list",
    "an unknown key of a matrix",
    "an axis without a path",
    "an unknown key of an axis",
    "an axis without values",
    "values that are a text",
    "values by reference",
    "a schema that varies",
    "an axis named target",
    "a wrong name of a value",
    "a list without a name",
    "a reference without a name",
    "a target that is a list",
    "an empty exclusion",
    "a reference to no variable",
    "a wrong reference in a value",
    "options and a file at once",
}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if value is DELETE else value


def verdict(case: Malformed) -> bool | None:
    """Whether the schema accepts a recipe's own file; None where YAML itself is wrong."""
    try:
        tree = read_tree("recipe.yaml", case.text)
    except Unreadable:
        return None
    return None if tree.problems else VALIDATOR.is_valid(plain(tree.data))


def test_the_schema_refuses_what_it_can_of_the_malformed_compositions_and_accepts_the_rest() -> None:
    assert {case.name for case in COMPOSED if verdict(case) is False} == SEEN


def test_the_schema_accepts_what_only_deserves_a_warning() -> None:
    assert [case.name for case in (*CASES, *COMPOSED) if case.warns and verdict(case) is False] == []
