"""A recipe for TensorRT-LLM on a real cluster: jobs that ask for the GPUs of an engine's ranks, with stand-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.project import Project
from support.slurm import Cluster
from support.slurm_site import QuickProject
from support.trtllm_flow import make_container_project, write_recipe
from support.trtllm_specs import write_model
from support.trtllm_standins import install


@pytest.fixture
def site(shared_cluster: Cluster, tmp_path: Path) -> Iterator[Project]:
    standins = install(tmp_path / "container", "0.16.0")
    made = make_container_project(tmp_path, standins, **shared_cluster.environ)
    yield QuickProject(made.folder, made.environ)
    shared_cluster.clear()


def test_engines_are_built_and_measured_by_jobs_with_a_gpu_for_every_rank(site: Project, tmp_path: Path) -> None:
    runner = {"type": "slurm", "cpus": 1, "memory": "200MiB", "time": "10min"}
    path = write_recipe(
        site,
        write_model(tmp_path / "model"),
        "0.16.0",
        "engine",
        engine={"converter": "release"},
        targets={"h100": {"gpu": "h100-sxm-80gb", "parallelism": {"tensor": 2}, "runner": "cluster"}},
        runners={"cluster": runner},
    )
    scripts = site.trtx("plan", path.name, "--scripts")
    assert scripts.returncode == 0, scripts.stderr
    done = site.json("apply", path.name)
    rows = {row["step"]: row for row in done["status"]}
    assert {row["state"] for row in rows.values()} == {"done"}
    assert rows["build/h100/bf16"]["job"]["node"].startswith("h100")
    asked = [script.read_text() for script in site.folder.glob(".trtx/runs/*/slurm/cluster/groups/build*/**/*.sh")]
    assert any("h100:2" in script for script in asked)
    card = json.loads((site.folder / "out/small/h100/bf16/engine/trtllm.json").read_text())
    assert card["world_size"] == 2
    assert site.json("verify", site.folder / "out/small/h100/bf16")["passed"] is True
