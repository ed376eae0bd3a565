"""Follows one runner's jobs of a run: what the runner tells becomes states of steps, events of the record, errors.

The step's own result decides how it ended, and its entry in the cache whether it is done. A second driver that adopts
the run reads in the events what was told already, and tells the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trtx.cache.store import Store
from trtx.errors import StepFailed, TrtxError
from trtx.plan.board import Board
from trtx.plan.cluster_errors import job_output, make_step_error
from trtx.plan.cluster_view import describe_wait, make_facts
from trtx.plan.record import describe_progress
from trtx.plan.survey import ENDS, State
from trtx.runners.slurm.groups import Group
from trtx.runners.slurm.outcome import Event, Notice, Outcome, Retried, TaskState, TaskStatus
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.states import Cause
from trtx.stages.job import Result, read_result


@dataclass
class Follower:
    """One submission. `late_s`: how long an entry may take to appear on a shared file system."""

    name: str
    board: Board
    store: Store
    runner: SlurmRunner
    late_s: float
    step_s: float
    _ended: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    _begun: dict[tuple[str, int], float] = field(default_factory=dict)
    _late: dict[str, tuple[Outcome, float]] = field(default_factory=dict)
    _shown: dict[str, TaskStatus] = field(default_factory=dict)
    _jobs: dict[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.runner.is_over and not self._late

    def submit(self, groups: Sequence[Group]) -> None:
        """Submit what has not been submitted. Raises UsageProblem when Slurm refuses, and then cancels what it took."""
        try:
            events = self.runner.submit(groups)
        except TrtxError:
            self._refresh()
            raise
        self._refresh()
        self._handle(events)
        self._settle_run()

    def remember(self) -> None:
        """Learn from the events what an earlier driver told."""
        for event in self.board.record.events():
            step_id = event.get("step", "")
            if event["event"] == "started" and "job" in event:
                self._begun[step_id, event["attempt"]] = event["time"]
            if event["event"] == "submitted":
                self._jobs[step_id] = event["job"]
            if event["event"] in ENDS:
                self._told.add(step_id)

    def look(self) -> list[str]:
        """One look at the jobs; steps that were made since the last one."""
        made = self._handle(self.runner.poll(self.step_s))
        for outcome, deadline in list(self._late.values()):
            made += self._settle_done(outcome, deadline)
        self._refresh()
        self._settle_run()
        return made

    def _settle_run(self) -> None:
        """Note when nothing is left to follow: a run that was adopted may have ended before."""
        if self.is_over:
            self.board.record.settle(self.name)

    def _handle(self, events: Iterable[Event]) -> list[str]:
        made: list[str] = []
        for event in events:
            if isinstance(event, Notice):
                self.board.record.add_event("notice", runner=self.name, what=event.what)
                self.board.observer.note(event.what)
            elif isinstance(event, Retried):
                self._note_retry(event)
            elif isinstance(event, Outcome):
                made += self._settle(event)
        return made

    def _note_retry(self, event: Retried) -> None:
        change = f" with {event.change}" if event.change else ""
        self.board.record.add_event("retried", step=event.step, cause=event.cause.value, what=event.what)
        self.board.enter(event.step, State.QUEUED, f"submitted again{change}: {event.what or event.cause.value}")

    # --- ends ----------------------------------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> list[str]:
        """A task ended, once."""
        self._ended.add(outcome.step)
        self._note_start(outcome.step, outcome.attempt, outcome.job, outcome.node)
        if outcome.state is TaskState.DONE:
            return self._settle_done(outcome, time.monotonic() + self.late_s)
        if outcome.state is TaskState.BLOCKED:
            self._tell("blocked", outcome, None, what=outcome.what)
            self.board.enter(outcome.step, State.BLOCKED, outcome.what)
            return []
        self._settle_failure(outcome)
        return []

    def _settle_done(self, outcome: Outcome, deadline: float) -> list[str]:
        """Its entry decides; what another node wrote may be seen here a while later."""
        step = self.board.plan.step(outcome.step)
        found = self.store.find(step.key)
        if found.manifest is None and time.monotonic() < deadline:
            self._late[step.id] = (outcome, deadline)
            return []
        self._late.pop(step.id, None)
        if found.manifest is None:
            error = StepFailed(
                f"{step.id} finished on {outcome.node}, but its entry is not in the cache",
                why=found.fault or f"it did not appear in {self.board.plan.cache_dir} within {self.late_s:g} s",
                fix="the cache must be a folder that all nodes and this machine share: see TRTX_CACHE_DIR",
            )
            self._tell("failed", outcome, None, what=error.what)
            self.board.fail(step.id, error)
            return []
        new, duration_s = step.id not in self._told, self._duration(outcome, self._result(outcome))
        self.board.note_manifest(step.id, found.manifest)
        self._tell("done", outcome, duration_s)
        self.board.enter(step.id, State.DONE, "made in this run", duration_s)
        return [step.id] if new else []

    def _settle_failure(self, outcome: Outcome) -> None:
        step, result = self.board.plan.step(outcome.step), self._result(outcome)
        error = make_step_error(step, outcome, result)
        cancelled = outcome.cause is Cause.CANCELLED
        duration_s = self._duration(outcome, result)
        kind = "cancelled" if cancelled else "failed"
        self._tell(kind, outcome, duration_s, what=error.what, cause=outcome.cause.value)
        self.board.fail(step.id, error, duration_s, State.CANCELLED if cancelled else State.FAILED)

    def log_of(self, step_id: str) -> Path | None:
        """The file that says most about how a step ended: its log, else what its job printed."""
        outcome = next((item for item in self.runner.outcomes() if item.step == step_id), None)
        if outcome is None:
            return None
        log = self.board.record.log(step_id, outcome.attempt)
        return log if log.exists() else job_output(self.board.record.submission_folder(self.name), outcome.job)

    def _result(self, outcome: Outcome) -> Result | None:
        return read_result(self.board.record.attempt_folder(outcome.step, outcome.attempt)) if outcome.attempt else None

    def _duration(self, outcome: Outcome, result: Result | None) -> float | None:
        if result is not None:
            return round(result.ended - result.started, 3)
        began = self._begun.get((outcome.step, outcome.attempt))
        return round(time.time() - began, 3) if began is not None and outcome.step not in self._told else None

    def _tell(self, event: str, outcome: Outcome, duration_s: float | None, **fields: str) -> None:
        """Write an end into the record, unless an earlier driver did."""
        if outcome.step in self._told:
            return
        self._told.add(outcome.step)
        place = {"attempt": outcome.attempt, "job": outcome.job, "node": outcome.node, "duration_s": duration_s}
        key = self.board.plan.step(outcome.step).key
        self.board.record.add_event(event, step=outcome.step, key=key, **place, **fields)

    def interrupt(self) -> None:
        """The cluster ends with this process: what has not ended is made by the next apply."""
        for task in self.runner.status():
            if task.step not in self._ended:
                self.board.record.add_event("interrupted", step=task.step, attempt=task.attempt)
                self.board.enter(task.step, State.INTERRUPTED, "stopped; `trtx apply` continues")

    # --- what goes on ---------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Bring the statuses up to date with what the jobs are doing."""
        for task in self.runner.status():
            if task != self._shown.get(task.step) or task.state is TaskState.RUNNING:
                self._shown[task.step] = task
                self._show(task)

    def _show(self, task: TaskStatus) -> None:
        status = self.board.statuses[task.step]
        status = self.board.statuses[task.step] = replace(status, job=make_facts(self.name, task))
        if task.step in self._ended:
            return
        self._note_job(task)
        if task.state is TaskState.RUNNING:
            self._note_start(task.step, task.attempt, task.job, task.node)
            began = self._begun[task.step, task.attempt]
            progress = self.board.record.progress(task.step, task.attempt)
            reason = task.reason or (describe_progress(progress) if progress else "")
            if status.state is not State.RUNNING:
                self.board.enter(task.step, State.RUNNING, f"on {task.node}" if task.node else "started")
            status = self.board.statuses[task.step]
            self.board.statuses[task.step] = replace(status, reason=reason, duration_s=time.time() - began)
        elif status.state is not State.QUEUED:
            self.board.enter(task.step, State.QUEUED, f"job {task.job}" if task.job else describe_wait(task))
        else:
            self.board.statuses[task.step] = replace(status, reason=describe_wait(task), duration_s=None)

    def _note_job(self, task: TaskStatus) -> None:
        if task.job and self._jobs.get(task.step) != task.job:
            self._jobs[task.step] = task.job
            self.board.record.add_event("submitted", step=task.step, runner=self.name, job=task.job)

    def _note_start(self, step_id: str, attempt: int, job: str, node: str) -> None:
        if attempt and (step_id, attempt) not in self._begun:
            self._begun[step_id, attempt] = time.time()
            key = self.board.plan.step(step_id).key
            self.board.record.add_event("started", step=step_id, key=key, attempt=attempt, job=job, node=node)
