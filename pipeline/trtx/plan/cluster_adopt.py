"""Runs that still have jobs: found by their own files, so that nothing is submitted twice."""

from __future__ import annotations

from pathlib import Path

from trtx.errors import UsageProblem
from trtx.plan.cluster import runs_on_cluster
from trtx.plan.cluster_run import read_order
from trtx.plan.record import RunRecord, find_run, runs_newest_first
from trtx.plan.steps import Plan
from trtx.plan.survey import OPEN, StepStatus
from trtx.runners.slurm.folder import SubmissionFolder


def unsettled(record: RunRecord, plan: Plan) -> list[str]:
    """Runners with jobs of a run of which it is not on record how they ended, and that nobody cancelled.

    A cluster inside a process ends with it.
    """
    return [
        name
        for name in record.submissions()
        if not record.is_settled(name)
        and plan.runners.get(name, {}).get("type") != "sim"
        and not SubmissionFolder(record.submission_folder(name)).is_cancelled()
    ]


def find_run_with_jobs(project: Path, run_id: str | None) -> RunRecord:
    """The run to attach to: the one named, else the latest with jobs that nobody has followed to their end.

    Without any, the latest run that had jobs. Raises UsageProblem when there is none.
    """
    if run_id is not None:
        record = find_run(project, run_id)
        if not record.submissions():
            raise UsageProblem(
                f"run {record.id} has no jobs on a cluster",
                why="steps of this machine end with the process that drives them",
                fix="`trtx apply` continues what it did not finish",
            )
        return record
    with_jobs = [record for record in runs_newest_first(project) if record.submissions()]
    if not with_jobs:
        find_run(project)
        raise UsageProblem("no run of this folder has jobs on a cluster", fix="`trtx status` shows the latest run")
    return next((record for record in with_jobs if unsettled(record, record.load_plan())), with_jobs[0])


def find_adoptable(project: Path, plan: Plan, statuses: list[StepStatus]) -> RunRecord | None:
    """A run whose jobs make what this plan needs, and nothing else; None when no run makes any of it.

    Raises UsageProblem when a run makes a part of it, or is followed by a process here.
    """
    wanted = {status.step.key for status in statuses if status.state in OPEN and runs_on_cluster(plan, status.step)}
    if not wanted:
        return None
    keys = {step.key for step in plan.steps}
    for record in runs_newest_first(project):
        if not record.submissions():
            continue
        other = record.load_plan()
        ordered = {
            other.step(task.step).key
            for name in unsettled(record, other)
            for group in read_order(record, name)
            for task in group.tasks
        }
        if not ordered & wanted:
            continue
        refuse_driven(record)
        if {step.key for step in other.steps} == keys and wanted <= ordered:
            return record
        raise UsageProblem(
            f"run {record.id} has jobs that make {len(ordered & wanted)} of these steps, and it is another plan",
            why="they would be made twice",
            fix=f"`trtx attach --run {record.id}` follows it, `trtx cancel --run {record.id}` ends it",
        )
    return None


def refuse_driven(record: RunRecord) -> None:
    """Raises UsageProblem when a process of this machine drives the run."""
    if record.is_driven_here():
        raise UsageProblem(
            f"run {record.id} is followed by process {record.driver()['pid']} already",
            fix="`trtx status --watch` shows it; `trtx cancel` ends its jobs",
        )
