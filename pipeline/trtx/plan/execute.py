"""Executes a plan: starts what is ready, learns what came of it, stops cleanly."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from trtx.cache.store import Store
from trtx.errors import StepFailed, TrtxError
from trtx.plan.environment import fill_environment
from trtx.plan.record import RunRecord
from trtx.plan.steps import Plan, Step
from trtx.plan.survey import State, StepStatus
from trtx.runners.base import Ended, Runner, Task
from trtx.stages.job import ATTEMPT_VARIABLE, read_result

# How long a worker may take to leave after SIGTERM.
GRACE_S = 10.0
# How often observers hear from a driver that waits.
TICK_S = 0.25


class Observer(Protocol):
    """Who shows progress to people."""

    def changed(self, status: StepStatus) -> None:
        """A step entered a state."""
        ...

    def tick(self, statuses: list[StepStatus]) -> None:
        """Called several times a second while steps run."""
        ...


@dataclass
class Execution:
    """One run of a plan in this process. `errors` by step id; `statuses` by step id in the plan's order."""

    plan: Plan
    store: Store
    runner: Runner
    record: RunRecord
    environ: Mapping[str, str]
    observer: Observer
    keep_going: bool = False
    statuses: dict[str, StepStatus] = field(default_factory=dict)
    errors: dict[str, TrtxError] = field(default_factory=dict)
    _started: dict[str, tuple[float, int]] = field(default_factory=dict)

    def run(self, surveyed: list[StepStatus]) -> None:
        """Run every step that has to run.

        Failures end up in `errors`; KeyboardInterrupt stops all children and passes on.
        """
        self.statuses = {status.step.id: status for status in surveyed}
        self._discard_corrupt()
        try:
            while True:
                self._start_ready()
                if not self._started:
                    return
                for ended in self.runner.wait(TICK_S):
                    self._settle(ended)
                self.observer.tick(self._with_progress())
        except BaseException:
            self._stop()
            raise

    def _discard_corrupt(self) -> None:
        for status in self.statuses.values():
            if status.corrupt:
                moved = self.store.quarantine(status.step.key)
                self.record.add_event("quarantined", entry=status.step.key, folder=str(moved), what=status.reason)

    def _start_ready(self) -> None:
        if self.errors and not self.keep_going:
            return
        for status in list(self.statuses.values()):
            step = status.step
            is_waiting = status.state in (State.TO_RUN, State.WAITING)
            if is_waiting and self._inputs_ready(step) and self.runner.has_room(exclusive=step.exclusive):
                self._start(step)

    def _inputs_ready(self, step: Step) -> bool:
        return all(self.statuses[entry.step].state in (State.CACHED, State.DONE) for entry in step.inputs.values())

    def _start(self, step: Step) -> None:
        folder = self.record.write_job(self.plan, step)
        attempt = self.record.next_attempt(step.id)
        task = Task(
            step=step.id,
            argv=step.argv,
            folder=folder,
            environment={
                **fill_environment(step.environment, step.inherit, self.environ),
                ATTEMPT_VARIABLE: str(attempt),
            },
            log=self.record.log(step.id, attempt),
            exclusive=step.exclusive,
        )
        self.record.add_event("started", step=step.id, key=step.key, attempt=attempt)
        self._started[step.id] = (time.time(), attempt)
        self.runner.start(task)
        self._enter(step.id, State.RUNNING, "started")

    def _enter(self, step_id: str, state: State, reason: str, duration_s: float | None = None) -> None:
        status = replace(self.statuses[step_id], state=state, reason=reason, duration_s=duration_s)
        self.statuses[step_id] = status
        self.observer.changed(status)

    def _settle(self, ended: Ended) -> None:
        """A task ended: its own result file decides, the exit code only explains a missing one."""
        began, attempt = self._started.pop(ended.step)
        duration_s = round(time.time() - began, 3)
        step = self.plan.step(ended.step)
        result = read_result(self.record.attempt_folder(ended.step, attempt))
        error: TrtxError | None
        if result is None:
            error = _describe_silent_end(ended)
        elif result.failure is not None:
            error = result.failure.error()
        else:
            found = self.store.find(step.key)
            self.statuses[step.id] = replace(self.statuses[step.id], manifest=found.manifest)
            error = None if found.manifest else StepFailed(f"{step.id} finished, but its entry is not in the cache")
        if error is None:
            self.record.add_event("done", step=step.id, key=step.key, attempt=attempt, duration_s=duration_s)
            self._enter(step.id, State.DONE, "made in this run", duration_s)
            return
        self.errors[step.id] = error
        self.record.add_event(
            "failed", step=step.id, key=step.key, attempt=attempt, duration_s=duration_s, what=error.what
        )
        self._enter(step.id, State.FAILED, error.what, duration_s)
        self._block_dependents(step.id)

    def _block_dependents(self, failed: str) -> None:
        blocked = {failed}
        for step in self.plan.steps:
            waits = self.statuses[step.id].state in (State.TO_RUN, State.WAITING)
            if waits and blocked & {entry.step for entry in step.inputs.values()}:
                blocked.add(step.id)
                self.record.add_event("blocked", step=step.id, what=f"{failed} failed")
                self._enter(step.id, State.BLOCKED, f"{failed} failed")

    def _with_progress(self) -> list[StepStatus]:
        """The statuses with what running steps report."""
        now = time.time()
        shown = []
        for status in self.statuses.values():
            if status.step.id in self._started:
                began, attempt = self._started[status.step.id]
                progress = self.record.progress(status.step.id, attempt)
                reason = f"{progress['done']}/{progress['total']} {progress['unit']}" if progress else ""
                shown.append(replace(status, reason=reason, duration_s=now - began))
            else:
                shown.append(status)
        return shown

    def _stop(self) -> None:
        """End all children; what they were doing is repeated by the next apply."""
        self.runner.stop(GRACE_S)
        for step_id, (began, attempt) in self._started.items():
            self.record.add_event("interrupted", step=step_id, attempt=attempt)
            self._enter(step_id, State.INTERRUPTED, "stopped; `trtx apply` continues", time.time() - began)
        self._started.clear()


def _describe_silent_end(ended: Ended) -> TrtxError:
    """The error of a worker that left no result."""
    if ended.signal is not None:
        name = signal.Signals(ended.signal).name
        hint = "the kernel does that when memory runs out" if ended.signal == signal.SIGKILL else "it crashed"
        return StepFailed(
            f"{ended.step} was killed by {name}",
            why=f"something outside trtx sent it, or {hint}",
            fix="run `trtx apply` again to continue; see the step's log with `trtx logs`",
        )
    return StepFailed(
        f"{ended.step} ended with exit code {ended.exit_code} and left no result",
        fix="see the step's log with `trtx logs`",
    )
