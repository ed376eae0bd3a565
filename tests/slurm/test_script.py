"""The batch script: readable, the same for the same inputs, and no value of a recipe ever becomes shell text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from support.slurm import Cluster, wait_until
from support.slurm_runs import Run

from trtx.errors import UsageProblem
from trtx.runners.slurm.commands import LocalShell
from trtx.runners.slurm.groups import Group, SlurmTask
from trtx.runners.slurm.options import Container, Gpu, Mount, Resources, SlurmOptions
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.script import make_script, quote_sbatch

IMAGE = "registry.example.com/llm/engine@sha256:" + "0" * 64
NASTY = (
    *("it's", 'a"b', "a\\b", "a # b", "$(touch pwned)", "`touch pwned`", "a;b", " lead", "trail ", "é ü", "a=b,c"),
    *("%j%A", "''", '\\"', "-x", "*", "${HOME}", "a\\\\", "a'b\"c\\ d"),
)
FULL = SlurmOptions(
    account="inference",
    partition="gpu",
    qos="high",
    constraint="nvlink&hbm80",
    reservation="night",
    licenses=("tensorrt:1", "cuda"),
    nice=10,
    exclusive=True,
    environment={"HF_HOME": "/data/it's here"},
    modules=("cuda/12.4", "python/3.11"),
    setup=("source /opt/site/env.sh",),
    extra={"mail-type": "FAIL", "spread-job": True, "overcommit": False, "core-spec": 0},
)


def group(folder: Path = Path("/run/steps/build")) -> Group:
    task = SlurmTask("build", 0, folder, ("true",), inherit=("HF_TOKEN",))
    resources = Resources(time_s=5400, memory_bytes=64 << 30, cpus=8, gpu=Gpu(2, "h100"), exclude=("n1", "n2"))
    return Group("build", (task,), resources, throttle=4)


def script_of(options: SlurmOptions) -> str:
    return make_script(options, group(), group().resources, [0, 1, 2, 7], "../../../../..")


def test_a_script_says_all_that_was_asked_for() -> None:
    assert script_of(FULL) == (
        """#!/bin/bash -l
# build: 4 tasks
# Written by trtx. Each task of the array finds what it does in tasks.json, beside this file.
# By hand, from this folder: sbatch job.sh
#SBATCH --array=0-2,7%4
#SBATCH --account=inference
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH '--constraint=nvlink&hbm80'
#SBATCH --reservation=night
#SBATCH --licenses=tensorrt:1,cuda
#SBATCH --nice=10
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=65536M
#SBATCH --time=90
#SBATCH --exclude=n1,n2
#SBATCH --signal=B:USR1@60
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --gres=gpu:h100:2
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --mail-type=FAIL
#SBATCH --spread-job
#SBATCH --core-spec=0

set -e -o pipefail
module load cuda/12.4
module load python/3.11
export HF_HOME='/data/it'"'"'s here'
source /opt/site/env.sh

exec python3 -m trtx.runners.slurm.task tasks.json
"""
    )


def test_sbatch_reads_every_value_as_it_was_given(cluster: Cluster) -> None:
    path = cluster.folder / "quoting.sh"
    for value in NASTY:
        line = f"#SBATCH {quote_sbatch(f'--comment={value}')}"
        path.write_text(f"#!/bin/bash\n{line}\n#SBATCH --job-name=after\ntrue\n")
        done = cluster.run("sbatch", "--parsable", "--hold", str(path))
        shown = cluster.run("squeue", "-h", "-j", done.stdout.strip(), "-o", "%j|%k").stdout
        assert shown == f"after|{value}\n", (value, done.stderr)


@pytest.mark.parametrize("runtime", ["none", "pyxis", "apptainer", "docker"])
def test_no_value_becomes_shell_text(runtime: str, tmp_path: Path) -> None:
    """The script runs with programs that print what they are given."""
    tools = tmp_path / "bin"
    tools.mkdir()
    program = {"none": "python3", "pyxis": "srun"}.get(runtime, runtime)
    (tools / program).write_text('#!/bin/sh\nprintf "%s\\n" "$VALUE" "$@"\n')
    (tools / program).chmod(0o755)
    for value in NASTY:
        options = SlurmOptions(environment={"VALUE": value})
        if runtime != "none":
            mount = Mount(f"/data/{value.strip()}".replace(",", "").replace(":", ""), "/data")
            options = dataclasses.replace(options, container=Container(runtime, IMAGE, (mount,)))  # type: ignore[arg-type]
        script = tmp_path / "job.sh"
        script.write_text(make_script(options, group(), Resources(gpu=Gpu(1)), [0], ".."))
        environ = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_GPUS": "2,3", "HF_TOKEN": "secret"}
        argv = ["bash", str(script)]
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[0] == value
        assert lines[-3:] == ["-m", "trtx.runners.slurm.task", "tasks.json"]
        if runtime != "none":
            assert any(f"{mount.source}:/data" in line for line in lines)
            assert any("sha256:" in line for line in lines)
        assert "secret" not in done.stdout + script.read_text()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("field", ["account", "partition", "qos", "constraint", "reservation", "python"])
def test_a_value_with_a_line_break_is_refused(field: str) -> None:
    with pytest.raises(UsageProblem, match=f"slurm option {field}: control characters"):
        SlurmOptions(**{field: "x\n#SBATCH --uid=0"})  # type: ignore[arg-type]


def test_extra_options_may_not_contradict_trtx_s_own() -> None:
    with pytest.raises(UsageProblem, match="'array' is one that trtx sets itself"):
        SlurmOptions(extra={"array": "0-9"})
    with pytest.raises(UsageProblem, match="'--mail-type' is not a long option"):
        SlurmOptions(extra={"--mail-type": "ALL"})


def test_an_image_that_is_not_pinned_is_refused() -> None:
    with pytest.raises(UsageProblem, match=r"'nvcr.io/nvidia/cuda:13.0' is not pinned"):
        Container("pyxis", "nvcr.io/nvidia/cuda:13.0")
    Container("apptainer", "/images/engine.sif")


def test_a_script_can_be_submitted_by_hand_and_the_run_knows_it(cluster: Cluster, run: Run) -> None:
    cluster.run("scontrol", "update", "partitionname=gpu", "state=down")
    try:
        runner = run.runner(cluster)
        runner.submit([run.group("build", {"build": ()})])
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "state=up")
    [folder] = (run.folder / "slurm/groups/build/rounds").iterdir()
    done = subprocess.run(["sbatch", "job.sh"], cwd=folder, env=cluster.environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    run.follow(runner)
    assert [item.state for item in runner.outcomes()] == [TaskState.DONE]
    wait_until(lambda: not cluster.jobs(), "both jobs ended")
    assert run.counts() == {"build start": 1, "build finish": 1}


def test_the_user_s_own_settings_of_sbatch_change_nothing(cluster: Cluster, run: Run) -> None:
    environ = {**cluster.environ, "SBATCH_PARTITION": "cpu", "SLURM_JOB_ID": "77", "SQUEUE_FORMAT": "%i", "SECRET": "x"}
    task = run.task("build", 0)
    script = "import os; assert 'SECRET' not in os.environ; assert os.environ['SLURM_JOB_PARTITION'] == 'gpu'"
    task = dataclasses.replace(task, argv=(sys.executable, "-c", script))
    runner = run.runner(LocalShell(environ))
    runner.submit([Group("build", (task,), Resources(cpus=1))])
    run.follow(runner)
    assert [item.state for item in runner.outcomes()] == [TaskState.DONE]


def test_secrets_reach_the_step_by_name_and_stand_in_no_file(cluster: Cluster, run: Run) -> None:
    script = "import os; assert len(os.environ['HF_TOKEN']) == 9; assert os.environ['GREETING'] == 'hello'"
    task = dataclasses.replace(run.task("build", 0), argv=(sys.executable, "-c", script), inherit=("HF_TOKEN",))
    runner = run.runner(LocalShell({**cluster.environ, "HF_TOKEN": "hf_secret"}))
    runner.submit([Group("build", (task,), Resources(cpus=1))])
    run.follow(runner)
    assert [item.state for item in runner.outcomes()] == [TaskState.DONE]
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


def test_a_task_that_brings_an_image_runs_in_it_where_the_site_has_containers() -> None:
    own = "registry.example.com/trtllm@sha256:" + "1" * 64
    resources = dataclasses.replace(group().resources, image=own)
    options = dataclasses.replace(FULL, container=Container("apptainer", IMAGE))
    script = make_script(options, group(), resources, [0], "../..")
    assert f"docker://{own}" in script
    assert IMAGE not in script
    assert own not in make_script(FULL, group(), resources, [0], "../..")
    loose = dataclasses.replace(resources, image="registry.example.com/trtllm:latest")
    with pytest.raises(UsageProblem, match="not pinned"):
        make_script(options, group(), loose, [0], "../..")
