"""The batch scripts of a plan, byte for byte as they would be submitted: nothing of a run's folder stands in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trtx.plan.cluster import make_groups, runs_on_cluster
from trtx.plan.cluster_open import find_options, open_cluster
from trtx.plan.steps import Plan
from trtx.plan.survey import OPEN, StepStatus
from trtx.runners.slurm.script import find_root, make_script


@dataclass(frozen=True)
class Script:
    """The script of one group; `steps` by their index in the array."""

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
    options = find_options(plan, open_cluster(plan, runner, run, environ), environ)
    scripts = []
    for group in make_groups(plan, runner, to_run, run):
        indices = [task.index for task in group.tasks]
        root = find_root(run / "slurm" / runner / "groups" / group.name / "rounds" / "1", group)
        text = make_script(options, group, group.resources, indices, root)
        scripts.append(Script(runner, group.name, {task.index: task.step for task in group.tasks}, text))
    return scripts
