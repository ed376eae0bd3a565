"""A step over several nodes starts once per rank and finds the others."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.plans import plan_of
from support.slurm import Cluster
from support.slurm_runs import Run

from trtx.cache.store import Store
from trtx.errors import UsageProblem
from trtx.files import write_text
from trtx.runners.slurm.groups import Group, SlurmTask
from trtx.runners.slurm.options import Container, Gpu, Mount, Resources, SlurmOptions
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.script import make_launch, make_script
from trtx.runners.slurm.states import Cause
from trtx.stages.job import JOB_NAME, dump_file, read_result

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
dist.barrier()
dist.destroy_process_group()
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


# A stage of the real worker; MODE says what rank 3 does, and rank 0 meanwhile.
STAGE = """
import os, signal, sys, time
from datetime import timedelta
from types import SimpleNamespace
import torch, torch.distributed as dist
from trtx.errors import EnvironmentProblem
from trtx.stages import worker

def run(params, context):
    mode = os.environ["MODE"]
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    total = torch.tensor([float(context.rank + 1)])
    dist.all_reduce(total)
    if mode != "works" and context.rank == 3:
        if mode == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise EnvironmentProblem("there is no room", fix="make some")
    if mode == "fails while rank 0 sleeps" and context.rank == 0:
        time.sleep(600)
    (context.work / "scratch").write_text("")
    (context.output / f"rank{context.rank}.bin").write_text(f"{int(total)} of {context.ranks}")
    dist.barrier()
    dist.destroy_process_group()
    return {"ranks": context.ranks}

worker.load_stage = lambda _name: SimpleNamespace(run=run)
sys.exit(worker.main(sys.argv[1:]))
"""


def group_of_worker(run: Run, tmp_path: Path, mode: str) -> tuple[Group, Store, str]:
    """A step of the real worker that runs as four processes; its cache and its key."""
    plan = plan_of(tmp_path)
    step = next(step for step in plan.steps if not step.inputs)
    folder = run.folder / "steps" / "build"
    write_text(folder / JOB_NAME, dump_file(step.job(plan)))
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MODE": mode}
    task = SlurmTask("build", 0, folder, (sys.executable, "-c", STAGE, JOB_NAME), environment)
    return Group("build", (task,), FOUR), Store(Path(plan.cache_dir)), step.key


def test_the_ranks_of_a_step_fill_one_entry_that_rank_0_publishes(
    cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None], tmp_path: Path
) -> None:
    group, store, key = group_of_worker(run, tmp_path, "works")
    runner = run.runner(cluster)
    runner.submit([group])
    run.follow(runner)
    attempt = run.folder / "steps/build/attempts/1"
    assert [item.state for item in runner.outcomes()] == [TaskState.DONE], (attempt / "log.txt").read_text()
    manifest = store.find(key).manifest
    assert manifest is not None
    assert sorted(file.path for file in manifest.files) == [f"rank{number}.bin" for number in range(4)]
    assert (store.output(key) / "rank3.bin").read_text() == "10 of 4"
    assert read_result(attempt).state == "published"
    assert (attempt / "log.txt").read_text().count("published") == 1
    tell(run, runner)


@pytest.mark.parametrize(
    ("mode", "what"),
    [
        ("fails while rank 0 sleeps", "there is no room"),
        ("is killed", "it was killed by SIGKILL"),
    ],
)
def test_a_rank_that_fails_fails_the_step_with_its_words(
    mode: str, what: str, cluster: Cluster, run: Run, tell: Callable[[Run, SlurmRunner], None], tmp_path: Path
) -> None:
    group, store, key = group_of_worker(run, tmp_path, mode)
    runner = run.runner(cluster)
    runner.submit([group])
    run.follow(runner)
    attempt = run.folder / "steps/build/attempts/1"
    assert [item.state for item in runner.outcomes()] == [TaskState.FAILED]
    result = read_result(attempt)
    assert result is not None, (attempt / "log.txt").read_text()
    assert result.failure is not None
    assert result.failure.what.startswith("rank 3 of ")
    assert result.failure.what.endswith(f"on h100-2: {what}")
    assert store.find(key).manifest is None
    tell(run, runner)


def test_with_containers_each_rank_is_in_one(tmp_path: Path) -> None:
    mounts = (Mount("/data", "/data", read_only=True),)
    words = make_launch(SlurmOptions(container=Container("pyxis", IMAGE, mounts)), FOUR, tmp_path)
    assert words[:4] == ["srun", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]
    assert f"--container-image=registry.example.com#llm/engine@sha256:{'0' * 64}" in words
    assert "--container-mounts=/data:/data:ro" in words
    words = make_launch(SlurmOptions(container=Container("apptainer", IMAGE, mounts)), FOUR, tmp_path)
    assert words[6:12] == ["apptainer", "exec", "--nv", "--bind", "/data:/data:ro", "--bind"]
    assert words[-4:] == [f"docker://{IMAGE}", "python3", "-m", "trtx.runners.slurm.rank"]


def test_docker_cannot_hold_ranks(run: Run) -> None:
    group = group_of(run, "", FOUR)
    with pytest.raises(UsageProblem, match="containers of docker cannot"):
        make_script(SlurmOptions(container=Container("docker", IMAGE)), group, FOUR, [0], "../..")


def test_ranks_are_spread_evenly_or_not_at_all() -> None:
    with pytest.raises(UsageProblem, match="3 ranks cannot be spread evenly over 2 nodes"):
        Resources(ranks=3, nodes=2)


def test_ranks_are_started_in_the_image_that_their_step_brings(tmp_path: Path) -> None:
    own = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1@sha256:" + "1" * 64
    resources = dataclasses.replace(FOUR, image=own)
    words = make_launch(SlurmOptions(container=Container("pyxis", IMAGE)), resources, tmp_path)
    assert f"--container-image={own.replace('/', '#', 1)}" in words
    assert IMAGE not in " ".join(words)
    bare = make_launch(SlurmOptions(), resources, tmp_path)
    assert not [word for word in bare if "container" in word]
    with pytest.raises(UsageProblem, match="control characters"):
        dataclasses.replace(FOUR, image="a\nb")
