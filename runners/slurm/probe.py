"""Learns how a cluster wants to be asked for GPUs. The caller remembers the answer; it changes with the site only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from trtx.errors import EnvironmentProblem
from trtx.runners.slurm.commands import Shell
from trtx.runners.slurm.options import Gpu, GpuDialect, Resources, SlurmOptions
from trtx.runners.slurm.script import gpu_option

# From the oldest way, which keeps an array's tasks on their nodes, to the newest, in this order.
PREFERRED: tuple[GpuDialect, ...] = ("gres", "gpus-per-node", "gpus")
assert set(PREFERRED) == set(get_args(GpuDialect))  # noqa: S101


@dataclass(frozen=True)
class GpuFacts:
    """How to ask for GPUs, the types there are, and what showed it. `dialect` is None on a cluster without GPUs."""

    dialect: GpuDialect | None
    types: tuple[str, ...]
    evidence: str


def probe_gpus(shell: Shell, options: SlurmOptions, *, timeout_s: float) -> GpuFacts:
    """Ask for the nodes' GPUs, then try the dialects with `sbatch --test-only`, which submits nothing.

    Raises EnvironmentProblem when Slurm does not answer, or accepts none.
    """
    answer = shell.call(["sinfo", "--noheader", "--format=%G|%P"], timeout_s=timeout_s)
    if answer.code != 0:
        raise EnvironmentProblem("cannot ask Slurm for its GPUs", why=answer.complaint, fix="see that `sinfo` works")
    types = parse_gres(answer.out)
    if not re.search(r"\bgpu:", answer.out):
        return GpuFacts(None, (), "sinfo lists no node with GPUs")
    refusals = []
    for dialect in PREFERRED:
        word = gpu_option(dialect, Resources(gpu=Gpu(1, types[0] if types else None)))
        site = {"account": options.account, "qos": options.qos, "reservation": options.reservation}
        words = [f"--{name}={value}" for name, value in site.items() if value]
        partition = options.partition or _partition_of(answer.out, types[0] if types else "")
        argv = ["sbatch", "--test-only", f"--partition={partition}", "--time=1", *words, word, "--wrap=true"]
        trial = shell.call(argv, timeout_s=timeout_s)
        if trial.code == 0:
            return GpuFacts(dialect, types, f"sbatch --test-only takes {word}")
        refusals.append(f"{word}: {trial.complaint}")
    raise EnvironmentProblem(
        "Slurm takes no request for a GPU",
        why="; ".join(refusals),
        fix="set the runner's partition, account and gpu_dialect by hand",
    )


def probe_max_array(shell: Shell, *, timeout_s: float) -> int | None:
    """How many tasks one array can have; None when Slurm does not tell."""
    answer = shell.call(["scontrol", "show", "config"], timeout_s=timeout_s)
    return parse_max_array(answer.out) if answer.code == 0 else None


def parse_max_array(text: str) -> int | None:
    """From `scontrol show config`: indices are below MaxArraySize, and all tasks count against MaxJobCount.

    Source: slurm.conf(5). A MaxArraySize of 0 forbids arrays, which leaves nothing to split.
    """
    found = [int(number) for number in re.findall(r"^(?:MaxArraySize|MaxJobCount) *= *(\d+)", text, re.MULTILINE)]
    return min(found) if found and min(found) > 0 else None


def parse_gres(text: str) -> tuple[str, ...]:
    """GPU types in `sinfo --format=%G`, such as "gpu:h100:4(S:0-1),nvme:1"; untyped ones have none."""
    return tuple(sorted(set(re.findall(r"\bgpu:([A-Za-z_][A-Za-z0-9_.-]*)(?=:\d)", text))))


def _partition_of(text: str, kind: str) -> str:
    """A partition whose nodes have GPUs of a type."""
    rows = [line.partition("|") for line in text.splitlines()]
    return next(name.strip().rstrip("*") for gres, _, name in rows if f"gpu:{kind}" in gres)
