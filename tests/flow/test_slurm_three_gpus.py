"""The recipe for three kinds of GPUs as it stands, on nodes that have them, with the real stages from end to end."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.project import ROOT, Project, make_project
from support.slurm import Cluster
from support.slurm_table import PROPERTY, End, make_row

RECIPE = "recipes/slurm-three-gpus.yaml"
# One format for each kind: a program takes a minute of a processor to compile, and the recipe has six.
FORMATS = {"h100": "int8", "a100": "int8", "b200": "fp32"}
STAGES = ("calibrate", "convert", "build", "benchmark", "package")


@pytest.fixture
def fleet(quickstart: Project, shared_cluster: Cluster, tmp_path: Path) -> Project:
    """A project on the cluster; its cache has nothing but what the quickstart fetched: the trained model and texts."""
    project = make_project(tmp_path / "project", tmp_path / "cache")
    (project.folder / "recipes").mkdir()
    shutil.copy(ROOT / RECIPE, project.folder / RECIPE)
    archive = tmp_path / "fetched.tar"
    for done in (
        quickstart.trtx("cache", "export", archive, "download/*"),
        project.trtx("cache", "import", archive),
    ):
        assert done.returncode == 0, done.stderr
    return Project(project.folder, {**project.environ, **shared_cluster.environ})


def test_the_quickstart_is_built_measured_and_packaged_on_three_kinds_of_nodes(
    fleet: Project, record_property: Callable[[str, object], None]
) -> None:
    formats = [word for kind, name in FORMATS.items() for word in ("--set", f"targets.{kind}.quantization=[{name}]")]
    done = fleet.trtx("apply", RECIPE, *formats, "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = {row["step"]: row for row in fleet.json("status")["status"]}
    jobs = {step: row for step, row in rows.items() if row["job"]}
    attempts = Counter(
        str(path.parents[1]) for path in fleet.folder.glob(".trtx/runs/*/steps/**/attempts/*/result.json")
    )
    package = jobs["package/b200/fp32"]
    most = max(attempts.values())
    end = End(package["state"], package["reason"], done.returncode, len(jobs), most, most)
    record_property(PROPERTY, make_row("nothing: the quickstart on three kinds of GPUs, real stages", end))

    assert {row["state"] for row in jobs.values()} == {"done"}
    assert Counter(row["stage"] for row in jobs.values()) == dict(zip(STAGES, (2, 2, 3, 3, 3), strict=True))
    assert most == 1
    assert len(attempts) == len(jobs)
    for kind, name in FORMATS.items():
        for stage in ("build", "benchmark"):
            assert jobs[f"{stage}/{kind}/{name}"]["job"]["node"].startswith(kind)
        assert (fleet.folder / f"out/slurm-three-gpus/{kind}/{name}/engine/engine.json").is_file()
    # One sbatch for each stage, and for builds and benchmarks for each kind of node.
    arrays = {row["job"]["id"].partition("_")[0] for row in jobs.values()}
    assert len(arrays) == len(list(fleet.folder.glob(".trtx/runs/*/slurm/*/groups/*/rounds/*/try-*"))) == 9
    assert len({jobs[f"package/{kind}/{name}"]["job"]["id"].partition("_")[0] for kind, name in FORMATS.items()}) == 1

    again = fleet.json("apply", RECIPE, *formats)
    assert {row["state"] for row in again["status"]} == {"cached"}
