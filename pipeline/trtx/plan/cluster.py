"""Which steps of a plan run on clusters, and the groups they are submitted in: a pure function of the plan.

One group per runner, stage and resources is one `sbatch`. Without a step on a cluster nothing of Slurm is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trtx.plan.environment import ALWAYS
from trtx.plan.steps import Plan, Step
from trtx.stages.params import PARAMS

if TYPE_CHECKING:
    from trtx.runners.slurm.groups import Group

# Types of runners whose steps are jobs.
CLUSTER_TYPES = ("slurm", "sim")
# Variables that a job gets from its node, whatever the driver's are.
OF_THE_NODE = frozenset({"CUDA_VISIBLE_DEVICES", "TMPDIR"})
# Variables that mean the same inside a container, where nothing of the driver's installation is.
IN_CONTAINERS = frozenset({"LANG", "LC_ALL", "TZ"})


def runs_on_cluster(plan: Plan, step: Step) -> bool:
    """Whether a step is a job rather than a process of this machine."""
    return plan.runners.get(step.runner, {}).get("type") in CLUSTER_TYPES


def make_groups(plan: Plan, runner: str, to_run: Collection[str], run_folder: Path) -> list[Group]:
    """The groups of the steps `to_run` that a runner runs; a group comes after those it needs.

    Steps of one chain have the same index in all groups, so that each waits for its own forerunner alone.
    """
    from trtx.plan.resources import resources
    from trtx.runners.slurm.groups import Group, SlurmTask, number_tasks

    steps = [step for step in plan.steps if step.id in to_run and step.runner == runner]
    inherit = inherited_variables(plan, runner)
    indices: dict[str, int] = {}
    groups = []
    for name, members in _split(steps).items():
        needs = {step.id: tuple(_needs(step, to_run)) for step in members}
        numbers = number_tasks(list(needs.items()), indices)
        indices |= numbers
        tasks = [
            SlurmTask(
                step.id,
                numbers[step.id],
                run_folder / "steps" / step.id,
                step.argv,
                step.environment,
                inherit=tuple(filter(inherit, step.inherit)),
                needs=needs[step.id],
            )
            for step in members
        ]
        throttle = plan.runners[runner]["throttle"]
        ordered = tuple(sorted(tasks, key=lambda task: task.index))
        groups.append(Group(name, ordered, resources(members[0].resources or {}), throttle))
    return groups


def _split(steps: Iterable[Step]) -> dict[str, list[Step]]:
    """Steps by the name of their group, stages in their order: `build`, and `build-2` for those that ask for others."""
    kinds: dict[tuple[str, str], list[Step]] = {}
    for step in sorted(steps, key=lambda step: list(PARAMS).index(step.stage)):
        kinds.setdefault((step.stage, repr(sorted((step.resources or {}).items()))), []).append(step)
    groups: dict[str, list[Step]] = {}
    for (stage, _), members in kinds.items():
        number = 1 + sum(members[0].stage == other[0].stage for other in groups.values())
        groups[stage if number == 1 else f"{stage}-{number}"] = members
    return groups


def _needs(step: Step, to_run: Collection[str]) -> Iterable[str]:
    """Inputs of a step that are made in the same run."""
    return dict.fromkeys(entry.step for entry in step.inputs.values() if entry.step in to_run)


def inherited_variables(plan: Plan, runner: str) -> Callable[[str], bool]:
    """Which of the driver's variables jobs of a runner get. Never those with secrets: no step of a job fetches."""
    if plan.runners[runner]["options"]["container"]["runtime"] != "none":
        return IN_CONTAINERS.__contains__
    # Behind ssh the driver's environment says nothing about the cluster.
    if plan.runners[runner]["submit_from"]:
        return lambda _: False
    return lambda name: name in ALWAYS and name not in OF_THE_NODE
