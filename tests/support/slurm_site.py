"""A project folder on a cluster, whose jobs run the real worker with stages that only keep count."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.light_worker import LightSteps
from support.project import Project
from support.slurm import Cluster

TARGETS = ("a100", "b200", "h100")
STAGES = ("calibrate", "convert", "build", "benchmark", "package")
# Builds and benchmarks ask for other GPUs on each target: those are three arrays, the others one.
NUM_GROUPS = 3 + 2 * len(TARGETS)


@dataclass
class Site:
    """A project folder on a cluster, and what its jobs do."""

    project: Project
    cluster: Cluster
    steps: LightSteps

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        project = self.project
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            project.argv(*arguments), cwd=project.folder, env=dict(project.environ), text=True, **pipes
        )

    def ends(self, process: subprocess.Popen[str]) -> str:
        """What a command printed for people; fails the test when it takes too long."""
        return process.communicate(timeout=60)[1]

    def rows(self, *arguments: object) -> dict[str, dict[str, Any]]:
        return {row["step"]: row for row in self.project.json("status", *arguments)["status"]}

    def sbatch_calls(self) -> int:
        return len(list(self.project.folder.glob(".trtx/runs/*/slurm/cluster/groups/*/rounds/*/try-*")))

    def check_all_ran_once(self) -> None:
        counts = self.steps.counts()
        assert set(counts.values()) == {1}, counts
        assert {line.split("/")[0] for line in counts} == set(STAGES)
        assert sum(line.endswith(" finish") for line in counts) == 2 + 3 * len(TARGETS)


def write_recipe(project: Project, fetched: Path, steps: LightSteps | None, **changes: Any) -> None:
    runner: dict[str, Any] = {"type": "slurm", "cpus": 1, "memory": "100MiB", "time": "10min"}
    if steps is not None:
        runner |= {"python": str(steps.python), "environment": dict(steps.environment)}
    texts = {"dataset": f"file://{fetched}/texts.txt", "samples": 4, "heldout": 2, "max_length": 8}
    recipe = {
        "schema": "trtx/v1",
        "name": "small",
        "model": {"source": f"file://{fetched}/model"},
        "quantization": {"fp32": {"algorithm": "none", "calibration": texts}},
        "engine": {"limits": {"max_batch_size": 2, "max_num_tokens": 128, "max_seq_len": 128}},
        "targets": {
            name: {
                "gpu": "cpu",
                "runner": "cluster",
                "job": {"gpus": f"{name}:1"},
                "engine": {"limits": {"max_batch_size": number + 2}},
            }
            for number, name in enumerate(TARGETS)
        },
        "benchmark": {"workloads": {"chat": {"input_tokens": 8, "output_tokens": 8, "concurrency": [1]}}},
        "runners": {"cluster": runner},
        **changes,
    }
    (project.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
