"""The batch scripts of a plan, byte for byte as they would be submitted: nothing of a run's folder stands in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.plan.cluster import make_groups, runs_on_cluster
from trtx.plan.cluster_open import find_options, open_cluster
from trtx.plan.steps import Plan
from trtx.plan.survey import OPEN, StepStatus
from trtx.runners.slurm.groups import split_indices
from trtx.runners.slurm.script import find_root, make_script


@dataclass(frozen=True)
class Script:
    """The script of one group, or of a part of one that is too large for an array; `steps` by their index in it."""

    runner: str
    group: str
    steps: Mapping[int, str]
    text: str


def make_scripts(plan: Plan, statuses: Iterable[StepStatus], environ: Mapping[str, str]) -> list[Script]:
    """The scripts of all steps that have to run on clusters, in the order in which they would be submitted.

    Raises EnvironmentProblem when a cluster has to be asked how it is asked for GPUs, and does not answer.
    """
    to_run = {status.step.id for status in statuses if status.state in OPEN}
    steps = [step for step in plan.steps if step.id in to_run and runs_on_cluster(plan, step)]
    return [
        script
        for runner in dict.fromkeys(step.runner for step in steps)
        for script in _scripts_of(plan, runner, to_run, environ)
    ]


def _scripts_of(plan: Plan, runner: str, to_run: Collection[str], environ: Mapping[str, str]) -> list[Script]:
    # Paths in a script are relative to its own folder, so any run's folder gives the same bytes.
    run = Path("/run")
    cluster = open_cluster(plan, runner, run, environ)
    options = find_options(plan, cluster, environ)
    scripts = []
    for group in make_groups(plan, runner, to_run, run):
        root = find_root(run / "slurm" / runner / "groups" / group.name / "rounds" / "1", group)
        for offset, indices in split_indices((task.index for task in group.tasks), cluster.max_array):
            steps = {index - offset: group.task(index).step for index in indices}
            text = make_script(options, group, group.resources, list(steps), root)
            scripts.append(Script(runner, group.name, steps, text))
    return scripts
