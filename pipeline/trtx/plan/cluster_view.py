"""What jobs of a run are doing, for whoever looks, with or without a driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from trtx.plan.cluster_open import Cluster, open_cluster
from trtx.plan.record import RunRecord, describe_progress
from trtx.plan.steps import Plan
from trtx.plan.survey import JobFacts, JobStatus, State
from trtx.runners.slurm.outcome import TaskState, TaskStatus
from trtx.runners.slurm.visit import Visit

# Whoever looks sees what the jobs wrote after this long, when Slurm does not answer.
PATIENCE_S = 5.0
STATES = {
    TaskState.WAITING: State.QUEUED,
    TaskState.RUNNING: State.RUNNING,
    TaskState.DONE: None,
    TaskState.FAILED: State.FAILED,
    TaskState.BLOCKED: State.BLOCKED,
    TaskState.CANCELLED: State.CANCELLED,
}


class ClusterView:
    """Looks at the jobs of a run again and again; asks Slurm no more often than a driver would."""

    def __init__(self, plan: Plan, record: RunRecord, environ: Mapping[str, str]) -> None:
        self._record = record
        self._visits: dict[str, Visit] = {}
        for name in record.submissions():
            cluster = open_cluster(plan, name, record.folder, environ)
            self._visits[name] = make_visit(cluster, record)

    def look(self) -> dict[str, JobStatus]:
        """The jobs by step."""
        jobs: dict[str, JobStatus] = {}
        for name, visit in self._visits.items():
            # Of a cluster inside another process nothing but files can be seen.
            tasks = visit.look(ask=not self._record.is_settled(name))
            jobs |= {task.step: self._describe(name, task, visit) for task in tasks}
        return jobs

    def silence(self) -> str:
        """Why Slurm does not answer; empty when it does."""
        return next((visit.silence for visit in self._visits.values() if visit.silence), "")

    def _describe(self, name: str, task: TaskStatus, visit: Visit) -> JobStatus:
        state, reason = STATES[task.state], task.reason
        if task.state is TaskState.RUNNING and not reason:
            progress = self._record.progress(task.step, task.attempt)
            reason = describe_progress(progress) if progress else "started"
        elif task.state is TaskState.WAITING:
            reason = describe_wait(task)
        return JobStatus(state, reason, make_facts(name, task), visit.elapsed_s(task.step))


def make_refresh(plan: Plan, record: RunRecord, environ: Mapping[str, str]) -> Callable[[], None]:
    """Fetches what jobs of a run have written, where they share no files with this machine; cheap to call often."""
    far = [name for name in record.submissions() if plan.runners[name]["submit_from"]]
    workspaces = [open_cluster(plan, name, record.folder, environ).workspace for name in far]

    def refresh() -> None:
        for workspace in workspaces:
            workspace.pull()

    return refresh


def make_visit(cluster: Cluster, record: RunRecord) -> Visit:
    """A look at the jobs that a run has on a cluster."""
    folder = record.submission_folder(cluster.name)
    timing = replace(cluster.timing, command_s=min(PATIENCE_S, cluster.timing.command_s))
    return Visit(folder, cluster.shell, cluster.workspace, timing=timing, clock=cluster.clock)


def make_facts(runner: str, task: TaskStatus) -> JobFacts:
    return JobFacts(runner, task.job, task.node, task.attempt, task.start, task.slurm)


def describe_wait(task: TaskStatus) -> str:
    """Why a job has not begun, and when Slurm expects it to."""
    start = f"; expected to begin {task.start.replace('T', ' ')}" if task.start else ""
    return f"{task.reason or 'in the queue'}{start}"
