"""The one walk over a plan: the state of every step and the reason for it.

`trtx plan` prints it, `trtx apply` starts from it and follows it, `trtx status` overlays a run's events on it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from trtx.cache.manifest import Manifest
from trtx.cache.store import Found, Store
from trtx.plan.keys import changed_factors
from trtx.plan.record import RunRecord
from trtx.plan.steps import Plan, Step


class State(StrEnum):
    """What a step is in. The first four are of a plan, the others of a run."""

    CACHED = "cached"
    TO_RUN = "to run"
    WAITING = "waiting"
    NOT_NEEDED = "not needed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class StepStatus:
    """A step's state and the reason in one line. `duration_s` is how long it took, or takes so far."""

    step: Step
    state: State
    reason: str
    duration_s: float | None = None
    manifest: Manifest | None = None
    corrupt: bool = False


def survey(plan: Plan, store: Store, previous: Plan | None = None) -> list[StepStatus]:
    """The state of every step against the cache, in the plan's order.

    A step has to run when its entry is absent and something that has to run needs it, or when its entry is corrupt.
    `previous` is the plan of an earlier run: its factors explain what changed.
    """
    found = {step.id: store.find(step.key) for step in plan.steps}
    needed = _needed(plan, found)
    return [_status(step, found, needed, previous) for step in plan.steps]


def _needed(plan: Plan, found: Mapping[str, Found]) -> dict[str, str]:
    """Steps that have to run → who needs them ("" for what the plan is for)."""
    needed: dict[str, str] = {}
    wanted = {step.id: "" for step in plan.leaves()}
    wanted |= {step_id: "" for step_id, entry in found.items() if entry.fault}
    for step in reversed(plan.steps):
        if step.id in wanted and found[step.id].manifest is None:
            needed[step.id] = wanted[step.id]
            for entry in step.inputs.values():
                wanted.setdefault(entry.step, step.id)
    return needed


def _status(step: Step, found: Mapping[str, Found], needed: Mapping[str, str], previous: Plan | None) -> StepStatus:
    entry = found[step.id]
    if entry.manifest is not None:
        return StepStatus(step, State.CACHED, _describe_hit(entry.manifest), _duration(entry.manifest), entry.manifest)
    if step.id not in needed:
        return StepStatus(step, State.NOT_NEEDED, "not in the cache, and nothing that runs needs it")
    missing = list(dict.fromkeys(entry.step for entry in step.inputs.values() if entry.step in needed))
    reason = _describe_miss(step, entry, previous)
    if missing:
        reason = f"{reason}; after {_list_some(missing)}"
    return StepStatus(step, State.WAITING if missing else State.TO_RUN, reason, corrupt=entry.fault is not None)


def _duration(manifest: Manifest) -> float | None:
    duration = manifest.provenance.get("duration_s")
    return float(duration) if duration is not None else None


def _describe_hit(manifest: Manifest) -> str:
    started = time.localtime(manifest.provenance.get("started", 0))
    return f"same key as on {time.strftime('%Y-%m-%d %H:%M', started)}; every file checked"


def _describe_miss(step: Step, entry: Found, previous: Plan | None) -> str:
    if entry.fault:
        return f"the cached entry is corrupt: {entry.fault}"
    before = next((other for other in previous.steps if other.id == step.id), None) if previous else None
    if before is None:
        return "not in the cache"
    if before.key == step.key:
        return "not finished in the last run"
    changes = changed_factors(before.factors, step.factors)
    return f"changed since the last run: {_list_some(changes)}"


def _list_some(texts: list[str]) -> str:
    """The first two of a list, and how many more there are."""
    more = f" and {len(texts) - 2} more" if len(texts) > 2 else ""
    return f"{', '.join(texts[:2])}{more}"


def overlay(statuses: list[StepStatus], record: RunRecord) -> list[StepStatus]:
    """The statuses with what a run's events say: running, failed, interrupted, done."""
    last: dict[str, dict[str, Any]] = {}
    for event in record.events():
        if "step" in event:
            last[event["step"]] = {**last.get(event["step"], {}), **event}
    driven = record.is_driven()
    return [_overlay_one(status, last.get(status.step.id), driven, record) for status in statuses]


def _overlay_one(status: StepStatus, event: Mapping[str, Any] | None, driven: bool, record: RunRecord) -> StepStatus:
    """One step's last event over its state in the cache, which decides whenever they disagree."""
    if event is None:
        return status
    kind, duration_s = event["event"], event.get("duration_s")
    if kind == "started" and driven:
        progress = record.progress(status.step.id, event["attempt"])
        reason = f"{progress['done']}/{progress['total']} {progress['unit']}" if progress else "started"
        return replace(status, state=State.RUNNING, reason=reason, duration_s=time.time() - event["time"])
    if status.manifest is not None:
        made = kind == "done"
        return replace(status, state=State.DONE, reason="made in this run", duration_s=duration_s) if made else status
    ends = {
        "started": (State.INTERRUPTED, "its driver is gone; `trtx apply` continues"),
        "interrupted": (State.INTERRUPTED, "stopped; `trtx apply` continues"),
        "failed": (State.FAILED, event.get("what", "")),
        "blocked": (State.BLOCKED, event.get("what", "")),
    }
    if kind not in ends:
        return status
    state, reason = ends[kind]
    return replace(status, state=state, reason=reason, duration_s=duration_s)
