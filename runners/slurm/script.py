"""The batch script of a group: the same inputs give the same bytes, and people can read it and submit it by hand.

Nothing that is known only at submission stands in it. Job ids it waits for, its token and its folder are arguments of
sbatch; which step a task runs stands in tasks.json beside it, never in shell text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trtx.errors import UsageProblem
from trtx.runners.slurm.groups import Group, format_indices
from trtx.runners.slurm.options import Container, GpuDialect, Resources, SlurmOptions, choose_container

SCRIPT_NAME = "job.sh"
TASKS_NAME = "tasks.json"
# What a task prints before and after its step runs; the step's own output is its log.
OUTPUT_NAME = "slurm-%A_%a.out"
RANK_MODULE = "trtx.runners.slurm.rank"
TASK_MODULE = "trtx.runners.slurm.task"


def make_script(
    options: SlurmOptions, group: Group, resources: Resources, indices: Sequence[int], root: str, title: str = ""
) -> str:
    """The script that runs tasks `indices` of a group with `resources`; `root` is the run's folder seen from its own.

    Raises UsageProblem for a container that the tasks cannot be run in.
    """
    from trtx.render import environment

    if resources.ranks > 1 and options.container.runtime == "docker":
        raise UsageProblem(
            f"{group.name} runs over several processes, which containers of docker cannot do under Slurm",
            fix="use the container runtime pyxis or apptainer",
        )
    # With several ranks the containers are around each rank, see `make_launch`.
    container = choose_container(options.container, resources) if resources.ranks == 1 else Container()
    jinja = environment()
    jinja.filters.setdefault("sbatch", quote_sbatch)
    inherit = {name for task in group.tasks for name in task.inherit}
    return jinja.get_template("slurm/job.sh.j2").render(
        title=title or f"{group.name}: {len(indices)} task{'s' if len(indices) > 1 else ''}",
        options=sbatch_options(options, group, resources, indices),
        modules=options.modules,
        environment=dict(options.environment),
        setup=options.setup,
        container=container,
        image=image_reference(container),
        gpu=resources.gpu is not None,
        names=sorted({*inherit, *options.environment}),
        root=root,
        command=[options.python, "-m", TASK_MODULE, TASKS_NAME],
    )


def sbatch_options(options: SlurmOptions, group: Group, resources: Resources, indices: Sequence[int]) -> list[str]:
    """The options that stand in the script, as words."""
    throttle = f"%{group.throttle}" if group.throttle else ""
    values = {
        "array": format_indices(indices) + throttle,
        "account": options.account,
        "partition": resources.partition or options.partition,
        "qos": options.qos,
        "constraint": options.constraint,
        "reservation": options.reservation,
        "licenses": ",".join(options.licenses) or None,
        "nice": options.nice,
        "nodes": resources.nodes,
        "ntasks": resources.ranks,
        "ntasks-per-node": resources.ranks // resources.nodes if resources.ranks > 1 else None,
        "cpus-per-task": resources.cpus,
        "mem": None if resources.mebibytes is None else f"{resources.mebibytes}M",
        "time": resources.minutes,
        "exclude": ",".join(resources.exclude) or None,
        "signal": f"B:USR1@{options.warn_s}" if resources.time_s is not None and options.warn_s else None,
        "output": OUTPUT_NAME,
        "open-mode": "append",
    }
    words = [f"--{name}={value}" for name, value in values.items() if value is not None]
    if resources.gpu is not None:
        words.append(gpu_option(options.gpu_dialect, resources))
    if options.exclusive or resources.exclusive:
        words.append("--exclusive")
    words.append("--requeue" if options.requeue else "--no-requeue")
    for name, value in options.extra.items():
        if value is not False:
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    return words


def gpu_option(dialect: GpuDialect, resources: Resources) -> str:
    """How GPUs are asked for in a dialect."""
    gpu = resources.gpu
    assert gpu is not None  # noqa: S101  Callers ask only for groups with GPUs.
    kind = f"{gpu.type}:" if gpu.type else ""
    if dialect == "gres":
        return f"--gres=gpu:{kind}{gpu.count}"
    return f"--{dialect}={kind}{gpu.count * resources.nodes if dialect == 'gpus' else gpu.count}"


def make_launch(options: SlurmOptions, resources: Resources, root: Path) -> list[str]:
    """The words before a step's own argv that start it once per rank; empty for a task of one process."""
    if resources.ranks == 1:
        return []
    nodes, ranks, container = resources.nodes, resources.ranks, choose_container(options.container, resources)
    words = ["srun", f"--nodes={nodes}", f"--ntasks={ranks}", f"--ntasks-per-node={ranks // nodes}"]
    words += ["--kill-on-bad-exit=1", "--label"]
    mounts = [*(f"{m.source}:{m.target}{':ro' if m.read_only else ''}" for m in container.mounts), f"{root}:{root}"]
    if container.runtime == "pyxis":
        words += [f"--container-image={image_reference(container)}", *(f"--container-mounts={m}" for m in mounts)]
    if container.runtime == "apptainer":
        nvidia = ["--nv"] if resources.gpu else []
        words += ["apptainer", "exec", *nvidia, *(w for m in mounts for w in ("--bind", m)), image_reference(container)]
    return [*words, options.python, "-m", RANK_MODULE]


def image_reference(container: Container) -> str:
    """An image in the words of its container program: enroot's (pyxis) put # after the registry."""
    if container.runtime == "pyxis" and not container.image.startswith("/"):
        registry, slash, name = container.image.partition("/")
        return f"{registry}#{name}" if slash and ("." in registry or ":" in registry) else container.image
    if container.runtime == "apptainer" and not container.image.startswith("/"):
        return f"docker://{container.image}"
    return container.image


def find_root(folder: Path, group: Group) -> str:
    """The folder that holds a round's folder and all its steps' folders, seen from the round's."""
    return os.path.relpath(os.path.commonpath([folder, *(task.folder for task in group.tasks)]), folder)


def quote_sbatch(value: str) -> str:
    """One word of an `#SBATCH` line: sbatch knows quotes, and backslashes that escape inside and outside of them."""
    if re.fullmatch(r"[\w./:=,@%+-]+", value, re.ASCII):
        return value
    return "'" + re.sub(r"([\\'\"])", r"\\\1", value) + "'"
