"""Models that are quantized already, from the plan to a packaged engine, and those that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from support.checkpoints import make_unified
from support.engines import write_tokenizer_folder
from support.hub_checkpoints import make_awq_pack, make_gptq_pack, make_packed, write_config
from support.project import Project, make_project

from trtx.cache.store import Store

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True, "desc_act": False}
RECIPE: dict[str, Any] = {
    "schema": "trtx/v1",
    "name": "kept",
    "model": {"source": "file://modelopt"},
    "quantization": {
        "stored": {
            "algorithm": "checkpoint",
            "calibration": {"dataset": "file://texts.txt", "samples": 1, "heldout": 16, "max_length": 32},
        }
    },
    "targets": {"cpu": {"gpu": "cpu"}},
    "engine": {"limits": {"max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 64}},
}


def write_project(project: Project) -> Project:
    folder = project.folder
    shape = {"vocab_size": 258, "num_hidden_layers": 1}
    make_unified(folder / "modelopt", "int8_wo", **shape)
    make_packed(folder / "gptq", GPTQ, make_gptq_pack(bits=8, group=-1), **shape)
    make_unified(folder / "fp8", "fp8", kv_cache="fp8", vocab_size=258)
    make_packed(folder / "awq", AWQ, make_awq_pack(32), vocab_size=258)
    for name in ("modelopt", "gptq", "fp8", "awq"):
        write_tokenizer_folder(folder / name)
    (folder / "texts.txt").write_text("\n\n".join(f"text number {number}, and more" for number in range(64)))
    write_recipe(project)
    return project


def write_recipe(project: Project, **changes: Any) -> None:
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes, sort_keys=False))


def plan(project: Project, source: str) -> dict[str, Any]:
    """The plan of one of the models, its steps by id."""
    write_recipe(project, model={"source": f"file://{source}"})
    return {step["id"]: step for step in project.json("plan", "recipe.yaml")["steps"]}


def refused(project: Project, source: str, **variant: Any) -> str:
    """The messages of a plan that is refused before anything runs."""
    stored = {"stored": RECIPE["quantization"]["stored"] | variant}
    write_recipe(project, model={"source": f"file://{source}"}, quantization=stored)
    done = project.trtx("plan", "recipe.yaml")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("quantized")
    return write_project(make_project(folder / "project", folder / "cache"))


def test_models_of_two_tools_with_one_format_are_served_by_one_build(models: Project) -> None:
    axis = {"path": "model.source", "values": {"modelopt": "file://modelopt", "gptq": "file://gptq"}}
    write_recipe(models, matrix={"axes": {"model": axis}})
    done = models.trtx("apply", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    steps = {step["id"]: step for step in models.json("plan", "recipe.yaml")["steps"]}
    assert [name for name in steps if name.startswith("build/")] == ["build/cpu/stored/model-modelopt"]
    store = Store(models.folder.parent / "cache")
    for name in ("modelopt", "gptq"):
        folder = store.output(steps[f"package/cpu/stored/model-{name}"]["key"])
        card = json.loads((folder / "engine/engine.json").read_text())
        assert card["quantization"]["algorithm"] == "int8_wo"
        check = json.loads((folder / "engine/check.json").read_text())
        # What transformers computes with the weights that the checkpoint stands for; nothing else is known of it.
        assert set(check["figures"]) == {"compiled_vs_eager", "logits_vs_checkpoint", "perplexity_vs_checkpoint"}
        assert max(check["figures"].values()) < 1e-4
        assert "in transformers with the dequantized weights" in (folder / "README.md").read_text()
        kept = json.loads(
            (store.output(steps[f"calibrate/stored/model-{name}"]["key"]) / "trtx_calibration.json").read_text()
        )
        assert (kept["kept"], kept["modelopt"], kept["calibration_tokens"]) == (True, None, 0)
        assert kept["perplexity"]["after"] == check["reference_perplexity"]


def test_the_plan_knows_the_format_of_the_files(models: Project) -> None:
    awq, fp8 = plan(models, "awq"), plan(models, "fp8")
    found = awq["build/cpu/stored"]["params"]["quantization"]
    assert (found["algorithm"], found["group_size"], found["zero_points"]) == ("int4_awq", 32, True)
    assert found == awq["calibrate/stored"]["params"]["quantization"]
    found = fp8["build/cpu/stored"]["params"]["quantization"]
    assert (found["algorithm"], found["kv_cache"]) == ("fp8", "fp8")
    assert awq["build/cpu/stored"]["key"] != fp8["build/cpu/stored"]["key"]


def test_a_simulated_format_of_the_files_is_warned_about_at_the_algorithm(models: Project) -> None:
    write_recipe(models, model={"source": "file://fp8"})
    done = models.trtx("plan", "recipe.yaml")
    assert "recipe.yaml:7:16: warning: cpu/stored: fp8 is simulated on x86-64-v3" in done.stderr


def test_why_names_the_files_as_the_origin_of_the_format(models: Project) -> None:
    write_recipe(models, model={"source": "file://awq"})
    found = models.json("why", "recipe.yaml", "build/cpu/stored")
    text = json.dumps(found)
    assert "recipe.yaml:7:16; what the files of file://awq say" in text


@pytest.mark.parametrize("algorithm", ["none", "fp8", "int4_awq"])
def test_a_quantized_model_is_not_quantized_again(models: Project, algorithm: str) -> None:
    shown = refused(models, "awq", algorithm=algorithm)
    assert f"recipe.yaml:7:16: error: {algorithm} cannot be had: the model is quantized already, int4_awq" in shown
    assert "write `algorithm: checkpoint`" in shown


def test_a_kv_cache_without_scales_is_refused(models: Project) -> None:
    shown = refused(models, "awq", kv_cache="fp8")
    assert "error: the model has no scales of an fp8 KV cache" in shown
    assert "leave kv_cache out" in shown


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"quant_method": "bitsandbytes"}, "the quantization 'bitsandbytes' cannot be run"),
        (AWQ | {"version": "gemv"}, "says quantization_config.version: gemv"),
        (GPTQ | {"dynamic": {".*up_proj": {"bits": 4}}}, "says quantization_config.dynamic: .*up_proj"),
    ],
    ids=["unknown method", "another packing", "mixed bits"],
)
def test_a_format_that_cannot_be_read_is_refused_at_the_source(
    models: Project, config: dict[str, Any], what: str
) -> None:
    folder = models.folder / "odd"
    if not folder.exists():
        make_packed(folder, AWQ, make_awq_pack(32), vocab_size=258)
        write_tokenizer_folder(folder)
    write_config(folder, config)
    shown = refused(models, "odd")
    assert "recipe.yaml:4:11: error: the model is quantized in a way that cannot be run" in shown
    assert what in shown


def test_a_model_that_is_not_quantized_is_kept_as_well(models: Project) -> None:
    make_unified(models.folder / "plain", "none", vocab_size=258)
    (models.folder / "plain/hf_quant_config.json").unlink()
    write_tokenizer_folder(models.folder / "plain")
    stored = plan(models, "plain")
    none = {"stored": RECIPE["quantization"]["stored"] | {"algorithm": "none"}}
    write_recipe(models, model={"source": "file://plain"}, quantization=none)
    same = {step["id"]: step["key"] for step in models.json("plan", "recipe.yaml")["steps"]}
    assert {name: step["key"] for name, step in stored.items()} == same
