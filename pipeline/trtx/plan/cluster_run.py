"""The steps of a run that clusters run: submitted all at once, then followed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from trtx.cache.store import Store
from trtx.errors import Interrupted, UsageProblem
from trtx.files import read_json, write_json
from trtx.plan.board import Board
from trtx.plan.cluster import make_groups, runs_on_cluster
from trtx.plan.cluster_follow import Follower
from trtx.plan.cluster_open import Cluster, find_options, open_cluster
from trtx.plan.record import ORDER_NAME, RunRecord
from trtx.plan.steps import Plan
from trtx.plan.survey import OPEN
from trtx.processes import describe_this_process
from trtx.runners.slurm.groups import Group, group_from_json, group_to_json

ORDER_SCHEMA = "trtx.order/v1"


class ClusterRun:
    """One submission per runner. `environ` is that of Slurm's commands."""

    def __init__(self, plan: Plan, record: RunRecord, environ: Mapping[str, str]) -> None:
        self._plan, self._record, self._environ = plan, record, environ
        self._clusters: dict[str, Cluster] = {}
        self._followers: dict[str, Follower] = {}
        self._next_look = 0.0
        self._me = describe_this_process()

    @property
    def is_submitted(self) -> bool:
        """Whether there are jobs that go on without this process."""
        outlives = (self._clusters[name].outlives for name, follower in self._followers.items() if not follower.is_over)
        return any(outlives)

    @property
    def is_over(self) -> bool:
        return all(follower.is_over for follower in self._followers.values())

    def submit(self, board: Board, store: Store) -> None:
        """Order all steps that have to run and whose inputs are made or ordered, and submit them.

        Raises UsageProblem when Slurm refuses jobs, EnvironmentProblem when it does not answer.
        """
        self._record.take_over()
        to_run = {status.step.id for status in board.statuses.values() if status.state in OPEN}
        steps = [step for step in self._plan.steps if step.id in to_run and runs_on_cluster(self._plan, step)]
        orders = {
            name: make_groups(self._plan, name, to_run, self._record.folder)
            for name in dict.fromkeys(step.runner for step in steps)
        }
        # All orders are written down before the first is submitted: whoever adopts the run knows all of it.
        for name, groups in orders.items():
            for group in groups:
                for task in group.tasks:
                    self._record.write_job(self._plan, self._plan.step(task.step))
            document = {"schema": ORDER_SCHEMA, "groups": [group_to_json(group) for group in groups]}
            write_json(self._record.submission_folder(name) / ORDER_NAME, document)
        for name, groups in orders.items():
            self._open(name)
            self._begin(name, groups, board, store)

    def adopt(self, board: Board, store: Store) -> None:
        """Go on where another driver stopped: submit what it did not, and learn what became of the rest."""
        self._record.take_over()
        for name in self._record.submissions():
            self._open(name)
            self._begin(name, read_order(self._record, name), board, store)

    def _open(self, name: str) -> Cluster:
        if name not in self._clusters:
            self._clusters[name] = open_cluster(self._plan, name, self._record.folder, self._environ)
        return self._clusters[name]

    def _begin(self, name: str, groups: list[Group], board: Board, store: Store) -> None:
        cluster = self._clusters[name]
        options = find_options(self._plan, cluster, self._environ)
        runner = cluster.runner(options, self._record.submission_folder(name))
        follower = Follower(name, board, store, runner, cluster.timing.late_s, cluster.step_s)
        follower.remember()
        self._followers[name] = follower
        try:
            follower.submit(groups)
        except UsageProblem:
            # What Slurm took before it refused the rest would run for nothing.
            self.cancel()
            for ordered in self._record.submissions():
                self._record.settle(ordered)
            raise

    def look(self) -> list[str]:
        """One look at all jobs, not sooner than the files may be looked at; steps that were made since the last.

        Raises Interrupted when another process has taken the run over.
        """
        now = time.monotonic()
        if now < self._next_look:
            return []
        if self._record.driver() not in ({}, self._me):
            raise Interrupted(
                f"run {self._record.id} is followed by another process now",
                why=_describe_driver(self._record.driver()),
                fix="`trtx status --watch` shows the run",
            )
        made = [step for follower in self._followers.values() if not follower.is_over for step in follower.look()]
        self._next_look = now + min(cluster.timing.files_s for cluster in self._clusters.values())
        return made

    def cancel(self) -> str:
        """End all jobs of the run and nothing else; returns Slurm's complaint, empty when there was none."""
        complaints = [follower.runner.cancel() for follower in self._followers.values()]
        return next(filter(None, complaints), "")

    def leave(self) -> None:
        """This process goes. Jobs go on without it, unless their cluster is inside of it."""
        for name, cluster in self._clusters.items():
            cluster.close()
            follower = self._followers.get(name)
            if follower is not None and not follower.is_over and not cluster.outlives:
                self._record.settle(name)
                follower.interrupt()

    def log_of(self, step_id: str) -> Path | None:
        """The file that says most about how a step ended."""
        logs = (follower.log_of(step_id) for follower in self._followers.values())
        return next((log for log in logs if log is not None), None)


def read_order(record: RunRecord, name: str) -> list[Group]:
    """The groups that a runner was to run. Raises UsageProblem when the file is of another version of trtx."""
    document = read_json(record.submission_folder(name) / ORDER_NAME)
    if document.get("schema") != ORDER_SCHEMA:
        raise UsageProblem(f"the jobs of run {record.id} are of another version of trtx", fix="use that one")
    return [group_from_json(group) for group in document["groups"]]


def _describe_driver(note: Mapping[str, object]) -> str:
    return f"process {note.get('pid')} on {note.get('host')}"
