"""The project's recipes of TensorRT-LLM are planned for releases from 0.16 to 1.3, with no network and no GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.project import ROOT
from support.trtllm_recipes import write_model

from trtx.cli.main import main
from trtx.plan.steps import Plan, load_plan

IMAGE = "registry.example.com/trtllm:0.16.0"
NEW = ("0.21.0", "1.0.0", "1.2.1", "1.3.0rc3")
LLAMA_70B, AWQ, DEEPSEEK, MIXTRAL = (
    "llama-3.1-70b-fp8-h100",
    "llama-3.1-8b-int4-awq",
    "deepseek-v3-h200",
    "mixtral-8x7b-experts",
)
MODELS = {LLAMA_70B: "llama-70b", AWQ: "llama-8b", DEEPSEEK: "deepseek", MIXTRAL: "mixtral"}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Plans a recipe of the project with changes; returns the plan, or what is wrong. `-x` takes the setting x out."""
    monkeypatch.setenv("TRTX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("Some text.\n\nMore text.\n")

    def plan(recipe: str, *changes: str, cells: str = "*", refused: bool = False) -> Plan | str:
        name = recipe
        model = write_model(tmp_path / "models", MODELS[name])
        shutil.copy(ROOT / f"recipes/{name}.yaml", tmp_path / f"{name}.yaml")
        sets = [f"model.source=file://{model}", *(change for change in changes if not change.startswith("-"))]
        data = {LLAMA_70B: "fp8", AWQ: "awq"}.get(name)
        if data:
            sets.append(f"quantization.{data}.calibration.dataset=file://{tmp_path}/texts.txt")
        words = [word for change in sets for word in ("--set", change)]
        gone = [change.removeprefix("-") for change in changes if change.startswith("-")]
        gone += ["model.revision"] if name == AWQ else []
        unset = [word for setting in gone for word in ("--unset", setting)]
        code = main(["plan", f"{name}.yaml:{cells}", *words, *unset, "-o", "json"])
        out, err = capsys.readouterr()
        assert (code != 0) == refused, err
        return err if refused else load_plan(json.loads(out))

    return plan


def stages(plan: Plan) -> list[str]:
    return [step.id for step in plan.steps]


@pytest.mark.parametrize("release", ("0.16.0", *NEW))
def test_engines_of_llama_70b_are_planned_for_every_release(planned: Any, release: str) -> None:
    container = [f"engine.container={IMAGE}"] if release == "0.16.0" else []
    plan = planned(LLAMA_70B, f"engine.release={release}", *container)
    assert stages(plan)[2:] == [
        "calibrate/fp8",
        "convert/h100/fp8",
        "build/h100/fp8",
        "benchmark/h100/fp8",
        "package/h100/fp8",
    ]
    spec = plan.step("build/h100/fp8").params["spec"]
    assert (spec["release"], spec["flow"], spec["ranks"]["tensor"]) == (release, "engine", 4)
    assert spec["pool"]["tokens_per_block"] == (64 if release == "0.16.0" else 32)
    assert spec["container"]["image"] == (IMAGE if container else f"nvcr.io/nvidia/tensorrt-llm/release:{release}")
    resources = plan.step("build/h100/fp8").resources
    assert resources is not None
    assert resources["gpu"]["count"] == 4
    assert resources["gpu"]["type"] == "h100"


def test_a_release_without_a_known_image_wants_its_container_named(planned: Any) -> None:
    assert "no image of TensorRT-LLM 0.16.0 is known" in planned(LLAMA_70B, "engine.release=0.16.0", refused=True)


@pytest.mark.parametrize("release", ("1.0.0", "1.2.1", "1.3.0rc3"))
def test_the_same_recipe_in_the_pytorch_flow_has_no_conversion(planned: Any, release: str) -> None:
    plan = planned(LLAMA_70B, f"engine.release={release}", "engine.flow=pytorch")
    assert "convert" not in {step.stage for step in plan.steps}
    assert plan.step("build/h100/fp8").inputs == {}
    assert set(plan.step("benchmark/h100/fp8").inputs) == {"engine", "checkpoint"}
    build = plan.step("build/h100/fp8").resources
    assert build is not None
    assert build["gpu"] is None


def test_two_capabilities_share_one_checkpoint(planned: Any) -> None:
    for release in NEW:
        plan = planned(AWQ, f"engine.release={release}")
        assert [step for step in stages(plan) if step.startswith(("calibrate", "convert"))] == [
            "calibrate/awq",
            "convert/a100/awq",
        ]
        keys = {plan.step(f"build/{target}/awq").key for target in ("a100", "l40s")}
        assert len(keys) == 2


@pytest.mark.parametrize("release", ("1.0.0", "1.2.1", "1.3.0rc3"))
def test_deepseek_is_served_as_it_is_published(planned: Any, release: str) -> None:
    plan = planned(DEEPSEEK, f"engine.release={release}")
    assert [step.stage for step in plan.steps] == ["download", "build", "benchmark", "package"]
    spec = plan.step("benchmark/h200/as-published").params["spec"]
    assert spec["shape"]["num_experts"] == 256
    assert spec["shape"]["stored_as"] == "fp8_block_wo"
    assert spec["ranks"] == {"tensor": 8, "pipeline": 1, "context": 1, "expert": 8}
    assert plan.step("benchmark/h200/as-published").inputs["checkpoint"].step == "download/model"


@pytest.mark.parametrize("release", ("0.16.0", "0.21.0"))
def test_deepseek_is_refused_by_releases_before_the_pytorch_flow(planned: Any, release: str) -> None:
    assert f"TensorRT-LLM {release} has no PyTorch flow" in planned(DEEPSEEK, f"engine.release={release}", refused=True)


@pytest.mark.parametrize("release", ("0.16.0", *NEW))
def test_mixtral_s_experts_are_converted_by_the_release(planned: Any, release: str) -> None:
    container = [f"engine.container={IMAGE}"] if release == "0.16.0" else []
    plan = planned(MIXTRAL, f"engine.release={release}", "engine.converter=release", *container, cells="engines/*")
    convert = plan.step("convert/engines/bf16")
    assert convert.params["spec"]["converter"] == "release"
    assert convert.params["spec"]["ranks"]["expert"] == 4
    assert convert.inputs["checkpoint"].step == "download/model"
    assert convert.factors["toolchain"]["image-tensorrt-llm"] == release


def test_an_engine_is_keyed_by_release_tensorrt_capability_and_ranks_and_strictly_by_its_gpu(planned: Any) -> None:
    def build(*changes: str) -> str:
        return str(planned(LLAMA_70B, *changes).step("build/h100/fp8").key)

    plain = build()
    assert build("targets.h100.gpu=h100-pcie-80gb") == plain
    assert build("engine.kv_cache.memory_fraction=0.5") == plain
    strict = build("engine.strict_gpu=true")
    others = [
        strict,
        build("engine.strict_gpu=true", "targets.h100.gpu=h100-pcie-80gb"),
        build("targets.h100.gpu=l40s-48gb", "engine.preset=long-context"),
        build("engine.release=1.1.0"),
        build("targets.h100.parallelism.tensor=8"),
        build("engine.limits.max_batch_size=128"),
        build("engine.container=registry.example.com/other:1"),
    ]
    assert len({plain, *others}) == 1 + len(others)


def test_more_ranks_than_a_node_has_are_built_on_one_and_not_measured(planned: Any) -> None:
    ranks = ("targets.h100.parallelism.tensor=8", "targets.h100.parallelism.pipeline=2")
    assert "a benchmark over 2 nodes" in planned(LLAMA_70B, *ranks, refused=True)
    plan = planned(LLAMA_70B, *ranks, "-benchmark")
    assert plan.step("package/h100/fp8").params["spec"]["ranks"]["pipeline"] == 2
    built = plan.step("build/h100/fp8").resources
    assert built is not None
    assert (built["nodes"], built["ranks"], built["gpu"]["count"]) == (1, 1, 8)
