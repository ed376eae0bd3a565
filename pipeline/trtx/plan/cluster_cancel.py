"""Ends jobs of a run, whoever follows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from trtx.plan.cluster_open import find_options, open_cluster
from trtx.plan.cluster_view import make_visit
from trtx.plan.record import RunRecord
from trtx.plan.steps import Plan
from trtx.runners.slurm.outcome import FINAL


def cancel_run(plan: Plan, record: RunRecord, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """End all jobs of a run; the steps that had not ended, and Slurm's complaint, empty when there was none.

    What Slurm cannot be told now ends by itself.
    """
    ended: list[str] = []
    complaints = []
    for name in record.submissions():
        if record.is_settled(name):
            continue
        cluster = open_cluster(plan, name, record.folder, environ)
        visit = make_visit(cluster, record)
        ended += [task.step for task in visit.look(ask=False) if task.state not in FINAL]
        runner = cluster.runner(find_options(plan, cluster, environ), record.submission_folder(name))
        complaints.append(runner.cancel())
        visit.wake()
    _note(record, ended)
    return ended, next(filter(None, complaints), "")


def cancel_steps(
    plan: Plan, record: RunRecord, steps: Collection[str], environ: Mapping[str, str]
) -> tuple[list[str], str]:
    """End the jobs of some steps; what needs them is blocked by whoever follows the run."""
    ended: list[str] = []
    complaints = []
    for name in record.submissions():
        cluster = open_cluster(plan, name, record.folder, environ)
        visit = make_visit(cluster, record)
        mine = [task.step for task in visit.look(ask=False) if task.step in steps and task.state not in FINAL]
        complaints.append(visit.cancel(mine))
        ended += mine
    _note(record, ended)
    return ended, next(filter(None, complaints), "")


def _note(record: RunRecord, steps: Collection[str]) -> None:
    if steps:
        record.add_event("cancel", steps=sorted(steps))
