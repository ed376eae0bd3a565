"""What is known of every step while a plan runs, told to the run's record and to who watches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from trtx.cache.manifest import Manifest
from trtx.errors import TrtxError
from trtx.plan.record import RunRecord
from trtx.plan.steps import Plan
from trtx.plan.survey import State, StepStatus


class Observer(Protocol):
    """Who shows progress to people."""

    def changed(self, status: StepStatus) -> None:
        """A step entered a state."""
        ...

    def tick(self, statuses: list[StepStatus]) -> None:
        """Called several times a second while steps run."""
        ...

    def note(self, text: str) -> None:
        """Something happened that changes no step's state."""
        ...


@dataclass
class Board:
    """`statuses` by step id in the plan's order; `errors` by step id."""

    plan: Plan
    record: RunRecord
    observer: Observer
    statuses: dict[str, StepStatus] = field(default_factory=dict)
    errors: dict[str, TrtxError] = field(default_factory=dict)

    def load(self, surveyed: Iterable[StepStatus]) -> None:
        """Begin with what a survey found."""
        self.statuses.clear()
        self.statuses.update({status.step.id: status for status in surveyed})

    def enter(self, step_id: str, state: State, reason: str, duration_s: float | None = None) -> None:
        """A step is in a new state."""
        self.statuses[step_id] = replace(self.statuses[step_id], state=state, reason=reason, duration_s=duration_s)
        self.observer.changed(self.statuses[step_id])

    def note_manifest(self, step_id: str, manifest: Manifest | None) -> None:
        """The entry of a step was found."""
        self.statuses[step_id] = replace(self.statuses[step_id], manifest=manifest)

    def fail(
        self, step_id: str, error: TrtxError, duration_s: float | None = None, state: State = State.FAILED
    ) -> None:
        """A step ended badly: what needs it is blocked."""
        self.errors[step_id] = error
        self.enter(step_id, state, error.what, duration_s)
        self._block_dependents(step_id)

    def _block_dependents(self, failed: str) -> None:
        blocked = {failed}
        for step in self.plan.steps:
            waits = self.statuses[step.id].state in (State.TO_RUN, State.WAITING)
            if waits and blocked & {entry.step for entry in step.inputs.values()}:
                blocked.add(step.id)
                self.record.add_event("blocked", step=step.id, what=f"{failed} failed")
                self.enter(step.id, State.BLOCKED, f"{failed} failed")
