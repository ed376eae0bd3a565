"""A job gets the GPUs its target names, in the words this cluster understands, and refuses to work without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

import pytest
from support.slurm import Cluster
from support.slurm_runs import Run

from trtx.runners.slurm.commands import LocalShell
from trtx.runners.slurm.gpu import check_gpus, parse_types
from trtx.runners.slurm.options import Gpu, GpuDialect, Resources, SlurmOptions
from trtx.runners.slurm.outcome import TaskState
from trtx.runners.slurm.probe import probe_gpus
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.states import Cause

Tell = Callable[[Run, SlurmRunner], None]
CPU = Resources(cpus=1, memory_bytes=20 << 20)


@pytest.mark.parametrize("dialect", get_args(GpuDialect))
def test_each_target_runs_where_its_gpus_are(dialect: GpuDialect, cluster: Cluster, run: Run, tell: Tell) -> None:
    run.options = dataclasses.replace(run.options, gpu_dialect=dialect)
    runner = run.runner(cluster)
    kinds = ("h100", "a100", "b200")
    groups = [
        run.group(f"build-{kind}", {kind: ()}, resources=dataclasses.replace(CPU, gpu=Gpu(2, kind))) for kind in kinds
    ]
    runner.submit(groups)
    run.follow(runner)
    assert {item.state for item in runner.outcomes()} == {TaskState.DONE}
    for kind in kinds:
        words = (run.folder / f"steps/{kind}/attempts/1/log.txt").read_text().split()
        assert words[2].startswith(kind)
        assert len(words[3].split(",")) == 2
    tell(run, runner)


def test_a_node_that_gives_another_gpu_is_refused_in_one_sentence_and_left_out(
    cluster: Cluster, run: Run, tell: Tell
) -> None:
    # A site whose scheduler gives what it likes: the script asks for any GPU, the task expects an H100.
    run.options = dataclasses.replace(run.options, extra={"nodelist": "a100-1"}, gpu_dialect="gpus")
    resources = dataclasses.replace(CPU, gpu=Gpu(1, None, "H100"))
    smi = run.folder / "bin" / "nvidia-smi"
    smi.parent.mkdir(parents=True)
    smi.write_text("#!/bin/sh\necho '0, NVIDIA A100-SXM4-80GB'\n")
    smi.chmod(0o755)
    shell = LocalShell({**cluster.environ, "PATH": f"{smi.parent}:{cluster.environ['PATH']}"})
    runner = run.runner(shell)
    runner.submit([run.group("build", {"build": ()}, resources=resources)])
    run.follow(runner)
    [outcome] = runner.outcomes()
    assert (outcome.state, outcome.cause) == (TaskState.FAILED, Cause.WRONG_GPU)
    assert "the job asked for 1 × H100 and a100-1 has 1 × NVIDIA A100-SXM4-80GB" in outcome.what
    assert not run.counts()
    tell(run, runner)


def test_the_words_for_gpus_are_learned_from_the_cluster(cluster: Cluster) -> None:
    found = probe_gpus(LocalShell(cluster.environ), SlurmOptions(), timeout_s=10)
    assert found.dialect == "gres"
    assert found.types == ("a100", "b200", "h100")
    assert "--gres" in found.evidence


def test_a_cluster_that_refuses_one_way_is_asked_another(cluster: Cluster, run: Run) -> None:
    folder = run.folder / "bin"
    folder.mkdir(parents=True)
    (folder / "sbatch").write_text('#!/bin/sh\ncase "$*" in *--gres*) exit 1;; esac\nexec /usr/bin/sbatch "$@"\n')
    (folder / "sbatch").chmod(0o755)
    shell = LocalShell({**cluster.environ, "PATH": f"{folder}:{cluster.environ['PATH']}"})
    assert probe_gpus(shell, SlurmOptions(), timeout_s=10).dialect == "gpus-per-node"


def test_what_was_given_is_compared_with_what_was_asked_for() -> None:
    details = "   JOB_GRES=gpu:a100:2\n     Nodes=n[1-2] CPU_IDs=0 Mem=100 GRES=gpu:a100:2(IDX:0-1)\n"
    environ = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}

    def ask(argv: object) -> str | None:
        return details if "scontrol" in str(argv) else None

    assert parse_types(details, "n1") == ["a100", "a100"]
    assert check_gpus(Gpu(2, "a100"), environ, ask) == ""
    assert check_gpus(Gpu(2, "h100"), environ, ask) == "the job asked for 2 × h100 and got 2 × a100 on n1"
    assert check_gpus(Gpu(4, "a100"), environ, ask) == "the job asked for 4 × a100 and got 2 GPUs on n1"
    assert check_gpus(Gpu(1, "a100"), {}, ask) == "the job asked for 1 × a100 and got 0 GPUs on this node"


def test_the_driver_of_the_gpus_has_the_last_word_where_it_is_installed() -> None:
    def ask(argv: object) -> str | None:
        return "0, NVIDIA H100 80GB HBM3\n1, NVIDIA H100 80GB HBM3\n" if "nvidia-smi" in str(argv) else None

    environ = {"CUDA_VISIBLE_DEVICES": "1", "SLURMD_NODENAME": "n1"}
    assert check_gpus(Gpu(1, "h100", "H100"), environ, ask) == ""
    assert "n1 has 1 × NVIDIA H100" in check_gpus(Gpu(2, "h100", "H100"), environ, ask)
    assert "has 1 × NVIDIA H100" in check_gpus(Gpu(1, "h200", "H200"), environ, ask)
