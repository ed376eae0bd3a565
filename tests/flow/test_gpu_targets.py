"""Recipes for GPUs on a machine without them: what is refused, when, and in how many words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.project import ROOT, Project

from trtx.errors import EnvironmentProblem
from trtx.hardware.gpus import find_gpu
from trtx.models.config import read_model_config
from trtx.models.sources.random import SHAPES
from trtx.plan.preflight import check_gpu_here, gpu_gap

H200 = "llama-3-8b-h200.yaml"


def test_a_gpu_recipe_is_planned_anywhere_and_applied_only_where_its_gpu_is(project: Project) -> None:
    recipe = project.folder / H200
    recipe.write_text((ROOT / "recipes" / H200).read_text())
    steps = project.json("plan", recipe)["steps"]
    assert [step["stage"] for step in steps][-2:] == ["benchmark", "package"]
    done = project.trtx("apply", recipe)
    assert done.returncode == 6
    assert "engines for h200-sxm-141gb cannot be built and measured on this machine" in done.stderr
    assert "it has no NVIDIA GPU" in done.stderr
    assert not list((project.folder / "cache").glob("**/model-*.safetensors"))


@pytest.mark.parametrize(
    ("name", "capability", "refused"),
    [("NVIDIA A100-SXM4-80GB", "8.0", True), ("NVIDIA H100 80GB HBM3", "9.0", True), ("NVIDIA H200", "9.0", False)],
)
def test_another_gpu_than_the_target_s_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capability: str, refused: bool
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '0, GPU-1, {name}, {capability}, 81920, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if not refused:
        check_gpu_here(find_gpu("h200"), {})
        return
    with pytest.raises(EnvironmentProblem) as caught:
        check_gpu_here(find_gpu("h200"), {})
    assert caught.value.why == f"its GPU is {name} (sm_{capability.replace('.', '')})"


def test_a_gpu_that_cuda_may_not_see_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA H200, 9.0, 143771, 580.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EnvironmentProblem, match="cannot be built and measured"):
        check_gpu_here(find_gpu("h200"), {"CUDA_VISIBLE_DEVICES": ""})


def test_models_without_gpu_kernels_are_told_apart() -> None:
    llama = read_model_config(SHAPES["llama-3-8b"])
    assert gpu_gap(llama) == ""
    assert "mixtures of experts" in gpu_gap(llama.model_copy(update={"num_experts": 8}))
    assert "have 96" in gpu_gap(llama.model_copy(update={"head_dim": 96}))
