"""Whole recipes for TensorRT-LLM, in a container whose programs are stand-ins: no figure here is a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.project import Project
from support.trtllm_flow import make_container_project, write_recipe
from support.trtllm_specs import write_model
from support.trtllm_standins import GPU_NAME, StandIns, install

from trtx.plan.keys import make_key
from trtx.plan.saved import seal


@pytest.fixture
def container(tmp_path: Path) -> StandIns:
    return install(tmp_path / "container", "0.16.0")


@pytest.fixture
def inside(tmp_path: Path, container: StandIns) -> Project:
    return make_container_project(tmp_path, container)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def test_the_engine_flow_ends_with_a_deployment_that_fits_its_container(inside: Project, model: Path) -> None:
    # One setting that the builder changes by itself.
    limits = {"max_batch_size": 2, "max_num_tokens": 1000, "max_seq_len": 64}
    write_recipe(inside, model, "0.16.0", "engine", engine={"converter": "release", "limits": limits})
    done = inside.json("apply", "recipe.yaml")
    assert [row["stage"] for row in done["status"]] == ["download", "convert", "build", "benchmark", "package"]
    assert {row["state"] for row in done["status"]} == {"done"}
    folder = inside.folder / "out/small/h100/bf16"
    card = read(folder / "engine/trtllm.json")
    assert (card["tensorrt_llm"], card["gpu"], card["world_size"]) == ("0.16.0", GPU_NAME, 2)
    assert [(row["field"], row["got"]) for row in card["drift"]] == [("build_config.max_num_tokens", 128)]
    assert "| `build_config.max_num_tokens` | `1000` | `128` |" in (folder / "README.md").read_text()
    report = read(folder / "benchmark/benchmark.json")
    assert report["machine"]["gpus"] == [GPU_NAME]
    assert inside.json("verify", folder)["passed"] is True
    again = inside.json("apply", "recipe.yaml")
    assert {row["state"] for row in again["status"]} == {"cached"}


def test_a_saved_plan_is_applied_until_the_tables_of_its_release_are_others(inside: Project, model: Path) -> None:
    write_recipe(inside, model, "0.16.0", "engine", engine={"converter": "release"})
    saved = inside.trtx("plan", "recipe.yaml", "--until", "build", "-o", "plan.json")
    assert saved.returncode == 0, saved.stderr
    body = read(inside.folder / "plan.json")
    assert {row["state"] for row in inside.json("apply", "plan.json")["status"]} == {"done"}
    last = body["steps"][-1]
    last["factors"]["toolchain"]["tables"] = "0" * 64
    last["key"] = make_key(last["factors"])
    (inside.folder / "older.json").write_text(json.dumps(seal(body)))
    refused = inside.trtx("apply", "older.json")
    assert refused.returncode == 2
    assert "tables: 000000000000" in refused.stderr, refused.stderr


def test_the_log_of_a_build_has_the_whole_command_and_the_tools_lines(inside: Project, model: Path) -> None:
    write_recipe(inside, model, "0.16.0", "engine", engine={"converter": "release"})
    assert inside.trtx("apply", "recipe.yaml", "--until", "build").returncode == 0
    log = inside.trtx("logs", "build/h100/bf16").stdout
    assert "trtllm-build --checkpoint_dir " in log
    assert "--use_paged_context_fmha enable" in log
    assert "[TRT-LLM] [I] Total time of building all engines" in log


def test_a_tool_that_runs_out_of_memory_fails_its_step_with_a_remedy(
    inside: Project, model: Path, container: StandIns
) -> None:
    write_recipe(inside, model, "0.16.0", "engine", engine={"converter": "release"})
    container.behave(die="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    done = inside.trtx("apply", "recipe.yaml")
    assert done.returncode == 1
    assert "llama/convert_checkpoint.py of TensorRT-LLM 0.16.0 failed (exit status 1)" in done.stderr
    assert "the GPU has too little free memory" in done.stderr
    assert "fix: lower engine.limits" in done.stderr


def test_another_container_than_the_planned_one_stops_before_any_tool(tmp_path: Path, model: Path) -> None:
    project = make_container_project(tmp_path, install(tmp_path / "container", "0.16.0", library="0.15.0"))
    write_recipe(project, model, "0.16.0", "engine", engine={"converter": "release"})
    done = project.trtx("apply", "recipe.yaml")
    assert done.returncode == 6
    assert "planned for TensorRT-LLM 0.16.0, and 0.15.0+standin is installed here" in done.stderr


def open_quickstart(quickstart: Project, cache: Path, folder: Path, release: str, flow: str, **changes: Any) -> Project:
    """A recipe for the quickstart's model in the format that ModelOpt quantized it to, which is in the cache."""
    made = make_container_project(folder, install(folder / "container", release))
    project = Project(made.folder, {**made.environ, "TRTX_CACHE_DIR": str(cache)})
    written = yaml.safe_load((quickstart.folder / "recipes/quickstart.yaml").read_text())
    variants = {"int4": written["quantization"]["int4"]}
    # Groups of 128 columns do not divide its matrices over ranks.
    targets = {"h100": {"gpu": "h100-sxm-80gb"}}
    sections = {"model": written["model"], "quantization": variants, "targets": targets, **changes}
    write_recipe(project, folder, release, flow, **sections)
    return project


def test_the_pytorch_flow_serves_what_modelopt_quantized(
    quickstart: Project, shared_cache: Path, tmp_path: Path
) -> None:
    """The checkpoint is ModelOpt's own export; the options file and the deployment are what trtllm-serve would get."""
    project = open_quickstart(quickstart, shared_cache, tmp_path, "1.3.0rc3", "pytorch")
    done = project.json("apply", "recipe.yaml")
    states = {row["stage"]: row["state"] for row in done["status"]}
    assert list(states) == ["download", "dataset", "calibrate", "build", "benchmark", "package"]
    assert states["calibrate"] == "cached"
    folder = project.folder / "out/small/h100/int4"
    quantized = read(folder / "checkpoint/hf_quant_config.json")
    assert quantized["quantization"]["quant_algo"] == "W4A16_AWQ"
    options = yaml.safe_load((folder / "engine/llm_options.yaml").read_text())
    assert (options["tensor_parallel_size"], options["max_batch_size"]) == (1, 4)
    assert read(folder / "deployment.json")["serve"][0] == "trtllm-serve"
    assert read(folder / "benchmark/benchmark.json")["results"][0]["time_to_first_token_s"] is not None
    assert project.json("verify", folder)["passed"] is True


def test_an_engine_is_built_of_the_checkpoint_that_trtx_writes(
    quickstart: Project, shared_cache: Path, tmp_path: Path
) -> None:
    """From ModelOpt's own export, without any script of TensorRT-LLM; what builds it checks every tensor."""
    engine = {"converter": "trtx"}
    project = open_quickstart(quickstart, shared_cache, tmp_path, "0.16.0", "engine", engine=engine)
    done = project.json("apply", "recipe.yaml")
    states = {row["stage"]: row["state"] for row in done["status"]}
    assert states["calibrate"] == "cached"
    assert {"convert", "build"} <= states.keys()
    config = read(project.folder / "out/small/h100/int4/engine/config.json")
    assert config["pretrained_config"]["quantization"]["quant_algo"] == "W4A16_AWQ"
    assert read(project.folder / "out/small/h100/int4/engine/trtllm.json")["drift"] == []
