"""Executes a plan: takes what remotes have, starts what is ready, learns what came of it, stops cleanly."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trtx.cache.store import Store
from trtx.errors import StepFailed, TrtxError
from trtx.plan.board import Board, Observer
from trtx.plan.cluster import runs_on_cluster
from trtx.plan.environment import fill_environment
from trtx.plan.exchange import Claimed, Event, Exchange, Pulled
from trtx.plan.record import RunRecord, describe_progress
from trtx.plan.remotes import Hit, Remotes
from trtx.plan.running import noted_run
from trtx.plan.steps import Plan, Step
from trtx.plan.survey import OPEN, State, StepStatus, survey
from trtx.recipe.units import format_bytes
from trtx.runners.base import Ended, Runner, Task
from trtx.stages.job import ATTEMPT_VARIABLE, read_result

if TYPE_CHECKING:
    from trtx.plan.cluster_run import ClusterRun

# How long a worker may take to leave after SIGTERM.
GRACE_S = 10.0
# How often observers hear from a driver that waits.
TICK_S = 0.25


@dataclass
class Execution:
    """One run of a plan in this process. `errors` by step id; `statuses` by step id in the plan's order.

    `warnings` are what went wrong with remotes, which never fails a run. `cluster` has the steps that run elsewhere:
    they are submitted when all steps of this machine are done, and followed to their end, or left alone with `detach`.
    """

    plan: Plan
    store: Store
    runner: Runner
    record: RunRecord
    environ: Mapping[str, str]
    observer: Observer
    keep_going: bool = False
    statuses: dict[str, StepStatus] = field(default_factory=dict)
    errors: dict[str, TrtxError] = field(default_factory=dict)
    remotes: Remotes | None = None
    warnings: list[str] = field(default_factory=list)
    cluster: ClusterRun | None = None
    detach: bool = False
    board: Board = field(init=False, repr=False)
    _started: dict[str, tuple[float, int]] = field(default_factory=dict)
    _unsent: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _exchange: Exchange = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.board = Board(self.plan, self.record, self.observer, self.statuses, self.errors)

    @property
    def is_submitted(self) -> bool:
        """Whether jobs are on a cluster that go on without this process."""
        return self.cluster is not None and self.cluster.is_submitted

    def run(self, surveyed: list[StepStatus]) -> None:
        """Run every step that has to run.

        Failures end up in `errors`; KeyboardInterrupt stops all children and passes on. Jobs on a cluster go on.
        """
        self.board.load(surveyed)
        self._discard_corrupt()
        with self._stopping():
            self._run_here()
            if self.cluster is not None and (not self.errors or self.keep_going):
                self.cluster.submit(self.board, self.store)
                self._follow()
            self._finish_pushes()

    def adopt(self, surveyed: list[StepStatus]) -> None:
        """Follow the jobs of a run whose driver is gone."""
        assert self.cluster is not None  # noqa: S101  Without jobs there is nothing to adopt.
        self.board.load(surveyed)
        with self._stopping():
            self.cluster.adopt(self.board, self.store)
            self._follow()
            self._finish_pushes()

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        with noted_run(self.store, self.plan, self.record), self._stopping_children():
            yield

    @contextmanager
    def _stopping_children(self) -> Iterator[None]:
        self._exchange = Exchange(self.store, self.remotes)
        try:
            yield
        except BaseException:
            self._stop()
            raise
        self._exchange.close(interrupted=False)

    def _run_here(self) -> None:
        while self._start_ready():
            runs = bool(self._started)
            for ended in self.runner.wait(TICK_S if runs else 0.0):
                self._settle(ended)
            self._handle_events(0.0 if runs else TICK_S)

    def _follow(self) -> None:
        """Follow the jobs on clusters until all have ended."""
        assert self.cluster is not None  # noqa: S101  See the callers.
        while not self.detach and not self.cluster.is_over:
            for step_id in self.cluster.look():
                if manifest := self.statuses[step_id].manifest:
                    self._exchange.push(step_id, manifest)
            self._handle_events(TICK_S if not self.cluster.is_over else 0.0)

    def _handle_events(self, timeout_s: float) -> None:
        for event in self._exchange.collect(timeout_s):
            self._handle(event)
        self.observer.tick(self._with_progress())

    def _discard_corrupt(self) -> None:
        for status in self.statuses.values():
            if status.corrupt:
                moved = self.store.quarantine(status.step.key)
                self.record.add_event("quarantined", entry=status.step.key, folder=str(moved), what=status.reason)

    def _start_ready(self) -> bool:
        """Begin what can begin; False when nothing is under way any more."""
        waits = False
        for step in self.plan.steps if not self.errors or self.keep_going else ():
            status = self.statuses[step.id]
            if status.hit is not None and status.state is State.REMOTE:
                if not self._is_measuring():
                    self._pull(step, status.hit)
            elif runs_on_cluster(self.plan, step):
                continue
            elif status.state in OPEN and self._inputs_ready(step) and self.runner.has_room(exclusive=step.exclusive):
                if self._is_quiet_for(step) and self._exchange.may_start(step.id, step.key):
                    self._start(step)
                else:
                    waits = True
        return bool(self._started) or self._exchange.is_busy() or waits

    def _is_measuring(self) -> bool:
        """Whether a step has the machine to itself, and so the network and the processors."""
        return any(self.plan.step(step_id).exclusive for step_id in self._started)

    def _is_quiet_for(self, step: Step) -> bool:
        """Whether nothing is on its way that a measuring step would feel."""
        return not (step.exclusive and (self._exchange.pulling or self._exchange.sending))

    def _pull(self, step: Step, hit: Hit) -> None:
        """Begin to take a step from the remote that has it."""
        self.record.add_event("pulling", step=step.id, key=step.key, remote=hit.remote.name)
        self._exchange.pull(step.id, hit)
        self.board.enter(step.id, State.PULLING, f"from remote {hit.remote.name}")

    def _handle(self, event: Event) -> None:
        """Something happened with a remote."""
        if isinstance(event, Pulled):
            self._settle_pull(event)
        elif isinstance(event, Claimed):
            self._settle_claim(event)
        elif event.why:
            self.record.add_event("push-failed", entry=self.plan.step(event.step).key, remote=event.remote)
            self._unsent.setdefault((event.remote, event.why), []).append(event.step)

    def _settle_pull(self, event: Pulled) -> None:
        step, remote = self.plan.step(event.step), event.hit.remote
        if event.manifest is not None:
            self.board.note_manifest(step.id, event.manifest)
            self.record.add_event("pulled", step=step.id, key=step.key, remote=remote.name)
            self.board.enter(step.id, State.DONE, f"taken from remote {remote.name} in this run")
            return
        self.record.add_event("refused", entry=step.key, remote=remote.name, what=event.why)
        if event.error is not None:
            self.board.fail(step.id, event.error)
            return
        if event.trouble and self.remotes is not None:
            self.remotes.skip(remote, event.why)
        elif self.remotes is not None:
            self.remotes.refuse(event.hit, event.why)
        why = f"remote {remote.name}: {event.why}"
        self.warnings.append(f"{step.id} was not taken from {why}")
        self._survey_again({step.id: why})

    def _settle_claim(self, event: Claimed) -> None:
        """Another machine has the entry or makes it: take it, or wait."""
        status = self.statuses[event.step]
        if event.claim.offer is not None and self.remotes is not None and status.state in OPEN:
            hit = self.remotes.note(event.claim.offer)
            self.statuses[event.step] = replace(status, state=State.REMOTE, hit=hit)
        elif event.claim.owner and status.state is State.TO_RUN:
            self.board.enter(event.step, State.WAITING, f"{event.claim.owner} is making it for the same remote")

    def _survey_again(self, refused: Mapping[str, str]) -> None:
        """Decide anew what the steps that have not begun need: a remote did not keep what it offered."""
        for status in survey(self.plan, self.store, None, self.remotes):
            step_id = status.step.id
            before = self.statuses[step_id].state
            if before not in OPEN and before is not State.NOT_NEEDED and step_id not in refused:
                continue
            reason = f"{refused[step_id]}; {status.reason}" if step_id in refused else status.reason
            self.statuses[step_id] = replace(status, reason=reason)
            if status.state is not before:
                self.observer.changed(self.statuses[step_id])

    def _finish_pushes(self) -> None:
        """Wait until the remotes have what was made."""
        while self._exchange.sending:
            self.observer.tick(self._with_progress())
            for event in self._exchange.collect(TICK_S):
                self._handle(event)
        for (remote, why), steps in self._unsent.items():
            more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            self.warnings.append(f"{steps[0]}{more} was not put on remote {remote}: {why}")

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
        self.board.enter(step.id, State.RUNNING, "started")

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
            self.board.note_manifest(step.id, found.manifest)
            error = None if found.manifest else StepFailed(f"{step.id} finished, but its entry is not in the cache")
        if error is None:
            self.record.add_event("done", step=step.id, key=step.key, attempt=attempt, duration_s=duration_s)
            self.board.enter(step.id, State.DONE, "made in this run", duration_s)
            if found.manifest:
                self._exchange.push(step.id, found.manifest)
            return
        self._exchange.give_back(step.id)
        self.record.add_event(
            "failed", step=step.id, key=step.key, attempt=attempt, duration_s=duration_s, what=error.what
        )
        self.board.fail(step.id, error, duration_s)

    def _with_progress(self) -> list[StepStatus]:
        """The statuses with what running steps report."""
        now = time.time()
        shown = []
        for status in self.statuses.values():
            moving = self._exchange.pulling.get(status.step.id) or self._exchange.sending.get(status.step.id)
            if status.step.id in self._started:
                began, attempt = self._started[status.step.id]
                progress = self.record.progress(status.step.id, attempt)
                reason = describe_progress(progress) if progress else ""
                shown.append(replace(status, reason=reason, duration_s=now - began))
            elif moving is not None:
                state = State.PULLING if status.step.id in self._exchange.pulling else State.SENDING
                reason = f"{format_bytes(moving[0])} of {format_bytes(moving[1])}"
                shown.append(replace(status, state=state, reason=reason))
            else:
                shown.append(status)
        return shown

    def _stop(self) -> None:
        """End all children; what they were doing is repeated by the next apply."""
        self.runner.stop(GRACE_S)
        if self.cluster is not None:
            self.cluster.leave()
        for step_id in list(self._exchange.pulling):
            self.record.add_event("interrupted", step=step_id)
            self.board.enter(step_id, State.INTERRUPTED, "stopped; `trtx apply` continues")
        self._exchange.close(interrupted=True)
        for step_id, (began, attempt) in self._started.items():
            self.record.add_event("interrupted", step=step_id, attempt=attempt)
            self.board.enter(step_id, State.INTERRUPTED, "stopped; `trtx apply` continues", time.time() - began)
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
