"""Whether a job got the GPUs it asked for, asked on its node before it works."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from trtx.runners.slurm.options import Gpu

# Asks a short command; None when it is missing or fails.
Ask = Callable[[Sequence[str]], str | None]


def check_gpus(expected: Gpu, environ: Mapping[str, str], ask: Ask) -> str:
    """One sentence that says what is wrong; empty when the GPUs are those asked for, as far as this node can tell.

    The driver's own tool tells names where it is installed; else Slurm tells the type it gave.
    """
    node = environ.get("SLURMD_NODENAME", "this node")
    visible = visible_devices(environ)
    found = gpu_names(visible, ask)
    if found is not None:
        wrong = [name for name in found if expected.product and expected.product.lower() not in name.lower()]
        if len(found) < expected.count or wrong:
            return f"the job asked for {expected.describe()} and {node} has {_count(found)}"
        return ""
    # A job that has its node to itself is given all of its GPUs.
    if len(visible) < expected.count:
        return f"the job asked for {expected.describe()} and got {len(visible)} GPUs on {node}"
    given = types_given(environ, ask)
    if expected.type and given and set(given) != {expected.type}:
        return f"the job asked for {expected.describe()} and got {_count(given)} on {node}"
    return ""


def visible_devices(environ: Mapping[str, str]) -> list[str]:
    """The devices Slurm gave to this job on this node."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environ.get(name):
            return [item for item in environ[name].split(",") if item and item != "NoDevFiles"]
    return []


def gpu_names(visible: Sequence[str], ask: Ask) -> list[str] | None:
    """Names of the visible GPUs by nvidia-smi; None where it does not answer."""
    argv = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
    answer = ask(argv)
    if answer is None:
        return None
    rows = [line.partition(",") for line in answer.splitlines() if line.strip()]
    # With device cgroups only the job's own GPUs are listed, numbered from 0.
    if len(rows) > len(visible) and all(item.isdigit() for item in visible):
        rows = [row for row in rows if row[0].strip() in visible]
    return [name.strip() for _, _, name in rows]


def types_given(environ: Mapping[str, str], ask: Ask) -> list[str]:
    """Types of the GPUs Slurm gave to this job on this node, one per GPU; empty where it does not tell."""
    job, node = environ.get("SLURM_JOB_ID", ""), environ.get("SLURMD_NODENAME", "")
    return parse_types(ask(["scontrol", "--details", "show", "job", job]) or "", node) if job else []


def parse_types(text: str, node: str) -> list[str]:
    """From lines like `Nodes=n1 CPU_IDs=0 Mem=100 GRES=gpu:h100:2(IDX:0-1)` of `scontrol --details show job`."""
    found: list[str] = []
    for nodes, gres in re.findall(r"^\s*Nodes=(\S+) .*GRES=(\S*)", text, re.MULTILINE):
        if nodes == node or ("[" in nodes and node.startswith(nodes.partition("[")[0])):
            for kind, number in re.findall(r"gpu:([A-Za-z0-9_.-]+):(\d+)", gres):
                found += [kind] * int(number)
    return found


def _count(names: Sequence[str]) -> str:
    kinds = dict.fromkeys(names)
    return " and ".join(f"{names.count(kind)} × {kind}" for kind in kinds) or "no GPU"
