"""A step over several nodes starts once per rank and finds the others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.slurm import Cluster
from support.slurm_runs import Run

from trtx.errors import UsageProblem
from trtx.runners.slurm.groups import Group, SlurmTask
from trtx.runners.slurm.options import Container, Gpu, Mount, Resources, SlurmOptions
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.script import make_launch, make_script
from trtx.runners.slurm.states import Cause

GLOO = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
names = [None] * dist.get_world_size()
keys = ("SLURMD_NODENAME", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
dist.all_gather_object(names, [os.environ[key] for key in keys])
if dist.get_rank() == 0:
    print(int(total), names, flush=True)
"""
FOUR = Resources(cpus=1, gpu=Gpu(1, "h100"), nodes=2, ranks=4)
IMAGE = "registry.example.com/llm/engine@sha256:" + "0" * 64


def group_of(run: Run, script: str, resources: Resources) -> Group:
    folder = run.folder / "steps" / "build"
    folder.mkdir(parents=True)
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    task = SlurmTask("build", 0, folder, (sys.executable, "-c", script), environment)
    return Group("build", (task,), resources)


def test_ranks_on_two_nodes_meet_through_gloo(
    cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None]
) -> None:
    runner = run.runner(cluster)
    runner.submit([group_of(run, GLOO, FOUR)])
    run.follow(runner)
    log = (run.folder / "steps/build/attempts/1/log.txt").read_text()
    assert [item.state for item in runner.outcomes()] == [TaskState.DONE], log
    ranks = [["h100-1", "0", "4", "0", "2"], ["h100-1", "1", "4", "1", "2"]]
    ranks += [["h100-2", "2", "4", "0", "2"], ["h100-2", "3", "4", "1", "2"]]
    assert f"10 {ranks}" in log
    tell(run, runner)


def test_all_ranks_end_when_one_fails(cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None]) -> None:
    runner = run.runner(cluster)
    script = "import os, time\nif os.environ['RANK'] == '3': raise SystemExit(5)\ntime.sleep(600)"
    runner.submit([group_of(run, script, FOUR)])
    run.follow(runner)
    [outcome] = runner.outcomes()
    assert (outcome.state, outcome.cause) == (TaskState.FAILED, Cause.FAILED)
    tell(run, runner)


def test_with_containers_each_rank_is_in_one(tmp_path: Path) -> None:
    mounts = (Mount("/data", "/data", read_only=True),)
    words = make_launch(SlurmOptions(container=Container("pyxis", IMAGE, mounts)), FOUR, tmp_path)
    assert words[:4] == ["srun", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]
    assert f"--container-image=registry.example.com#llm/engine@sha256:{'0' * 64}" in words
    assert "--container-mounts=/data:/data:ro" in words
    words = make_launch(SlurmOptions(container=Container("apptainer", IMAGE, mounts)), FOUR, tmp_path)
    assert words[5:11] == ["apptainer", "exec", "--nv", "--bind", "/data:/data:ro", "--bind"]
    assert words[-4:] == [f"docker://{IMAGE}", "python3", "-m", "trtx.runners.slurm.rank"]


def test_docker_cannot_hold_ranks(run: Run) -> None:
    group = group_of(run, "", FOUR)
    with pytest.raises(UsageProblem, match="containers of docker cannot"):
        make_script(SlurmOptions(container=Container("docker", IMAGE)), group, FOUR, [0], "../..")


def test_ranks_are_spread_evenly_or_not_at_all() -> None:
    with pytest.raises(UsageProblem, match="3 ranks cannot be spread evenly over 2 nodes"):
        Resources(ranks=3, nodes=2)
