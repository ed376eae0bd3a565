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
from trtx.plan.record import RunRecord, describe_progress
from trtx.plan.remotes import Hit, Remotes
from trtx.plan.steps import Plan, Step
from trtx.recipe.units import format_bytes


class State(StrEnum):
    """What a step is in. The first five are of a plan, the others of a run.

    `queued`: a cluster has its job, which has not begun.
    """

    CACHED = "cached"
    REMOTE = "remote"
    TO_RUN = "to run"
    WAITING = "waiting"
    NOT_NEEDED = "not needed"
    PULLING = "pulling"
    QUEUED = "queued"
    RUNNING = "running"
    SENDING = "sending"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


# States of steps for which something is still to be done.
OPEN = frozenset({State.REMOTE, State.TO_RUN, State.WAITING})


@dataclass(frozen=True)
class JobFacts:
    """The job of a step on a cluster. `start` is when Slurm expects it to begin, `slurm` what Slurm calls its state."""

    runner: str
    id: str
    node: str = ""
    attempt: int = 0
    start: str = ""
    slurm: str = ""


@dataclass(frozen=True)
class StepStatus:
    """A step's state and the reason in one line. `duration_s` is how long it took, or takes so far.

    `hit` is the remote's entry of a step that is taken from there, `job` that of a step on a cluster.
    """

    step: Step
    state: State
    reason: str
    duration_s: float | None = None
    manifest: Manifest | None = None
    corrupt: bool = False
    hit: Hit | None = None
    job: JobFacts | None = None


def survey(plan: Plan, store: Store, previous: Plan | None = None, remotes: Remotes | None = None) -> list[StepStatus]:
    """The state of every step against the cache and the remotes, in the plan's order.

    A step has to run when its entry is absent and something that has to run needs it, or when its entry is corrupt.
    One that a remote has is taken from there, and what it was made from is not needed. Remotes are asked once, for all
    that could be needed. `previous` is the plan of an earlier run: its factors explain what changed.
    """
    found = {step.id: store.find(step.key) for step in plan.steps}
    needed, hits = _needed(plan, found, {}), {}
    if remotes is not None and needed:
        hits = remotes.find(step.key for step in plan.steps if step.id in needed)
        needed = _needed(plan, found, hits)
    return [_status(step, found, needed, hits, previous) for step in plan.steps]


def _needed(plan: Plan, found: Mapping[str, Found], hits: Mapping[str, Hit]) -> dict[str, str]:
    """Steps that have to run or to be taken from a remote → who needs them ("" for what the plan is for)."""
    needed: dict[str, str] = {}
    wanted = {step.id: "" for step in plan.leaves()}
    wanted |= {step_id: "" for step_id, entry in found.items() if entry.fault}
    for step in reversed(plan.steps):
        if step.id in wanted and found[step.id].manifest is None:
            needed[step.id] = wanted[step.id]
            for entry in step.inputs.values() if step.key not in hits else ():
                wanted.setdefault(entry.step, step.id)
    return needed


def _status(
    step: Step,
    found: Mapping[str, Found],
    needed: Mapping[str, str],
    hits: Mapping[str, Hit],
    previous: Plan | None,
) -> StepStatus:
    entry = found[step.id]
    if entry.manifest is not None:
        return StepStatus(step, State.CACHED, _describe_hit(entry.manifest), _duration(entry.manifest), entry.manifest)
    if step.id not in needed:
        return StepStatus(step, State.NOT_NEEDED, "not in the cache, and nothing that runs needs it")
    corrupt = entry.fault is not None
    if step.key in hits:
        hit = hits[step.key]
        return StepStatus(step, State.REMOTE, _describe_offer(hit, entry), corrupt=corrupt, hit=hit)
    missing = list(dict.fromkeys(entry.step for entry in step.inputs.values() if entry.step in needed))
    reason = _describe_miss(step, entry, previous)
    if missing:
        reason = f"{reason}; after {_list_some(missing)}"
    return StepStatus(step, State.WAITING if missing else State.TO_RUN, reason, corrupt=corrupt)


def _duration(manifest: Manifest) -> float | None:
    duration = manifest.provenance.get("duration_s")
    return float(duration) if duration is not None else None


def _describe_hit(manifest: Manifest) -> str:
    started = time.localtime(manifest.provenance.get("started", 0))
    return f"same key as on {time.strftime('%Y-%m-%d %H:%M', started)}; every file checked"


def _describe_offer(hit: Hit, entry: Found) -> str:
    offer = hit.offer
    signed = f", signed by {offer.signer}" if offer.signer else ""
    fault = f"; the cached entry is corrupt: {entry.fault}" if entry.fault else ""
    return f"in remote {hit.remote.name}, {format_bytes(offer.manifest.total_bytes)}{signed}{fault}"


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


# Events that say how a step on a cluster ended.
ENDS = frozenset({"done", "failed", "blocked", "cancelled"})


@dataclass(frozen=True)
class JobStatus:
    """What a step's job is doing, by the job's own files and by Slurm's word. `state` is None when it ended well."""

    state: State | None
    reason: str
    facts: JobFacts
    duration_s: float | None = None


def overlay(
    statuses: list[StepStatus], record: RunRecord, jobs: Mapping[str, JobStatus] | None = None
) -> list[StepStatus]:
    """The statuses with what a run's events say: running, failed, interrupted, done.

    `jobs` are those of steps on clusters, by step; they count until an event says how the step ended.
    """
    last: dict[str, dict[str, Any]] = {}
    for line in record.events():
        if "step" in line:
            last[line["step"]] = {**last.get(line["step"], {}), **line}
    driven = record.is_driven()
    shown = []
    for status in statuses:
        event, job = last.get(status.step.id), (jobs or {}).get(status.step.id)
        if job is not None:
            shown.append(_overlay_job(status, event, job))
        else:
            shown.append(_overlay_one(status, event, driven, record))
    return shown


def _overlay_job(status: StepStatus, event: Mapping[str, Any] | None, job: JobStatus) -> StepStatus:
    """A step on a cluster: its recorded end, else what its job is doing."""
    status = replace(status, job=job.facts)
    if event is not None and event["event"] in ENDS:
        if status.manifest is not None:
            return _overlay_made(status, event)
        state = State.INTERRUPTED if event["event"] == "done" else State(event["event"])
        reason = "was made, and is not in the cache any more" if event["event"] == "done" else event.get("what", "")
        return replace(status, state=state, reason=reason, duration_s=event.get("duration_s"))
    if job.state is not None:
        return replace(status, state=job.state, reason=job.reason, duration_s=job.duration_s)
    if status.manifest is not None:
        return replace(status, state=State.DONE, reason="made in this run", duration_s=job.duration_s)
    return replace(status, state=State.RUNNING, reason="it ended well; its entry is not in the cache yet")


def _overlay_one(status: StepStatus, event: Mapping[str, Any] | None, driven: bool, record: RunRecord) -> StepStatus:
    """One step's last event over its state in the cache, which decides whenever they disagree."""
    if event is None:
        return status
    kind, duration_s = event["event"], event.get("duration_s")
    if kind == "pulling" and driven and status.manifest is None:
        return replace(status, state=State.PULLING, reason=f"from remote {event['remote']}")
    if kind == "started" and driven:
        progress = record.progress(status.step.id, event["attempt"])
        reason = describe_progress(progress) if progress else "started"
        return replace(status, state=State.RUNNING, reason=reason, duration_s=time.time() - event["time"])
    if status.manifest is not None:
        return _overlay_made(status, event)
    ends = {
        "started": (State.INTERRUPTED, "its driver is gone; `trtx apply` continues"),
        "pulling": (State.INTERRUPTED, "its driver is gone; `trtx apply` continues"),
        "interrupted": (State.INTERRUPTED, "stopped; `trtx apply` continues"),
        "failed": (State.FAILED, event.get("what", "")),
        "blocked": (State.BLOCKED, event.get("what", "")),
    }
    if kind not in ends:
        return status
    state, reason = ends[kind]
    return replace(status, state=state, reason=reason, duration_s=duration_s)


def _overlay_made(status: StepStatus, event: Mapping[str, Any]) -> StepStatus:
    """A step whose entry is in the cache: whether this run put it there."""
    ends_well = {
        "done": f"made in this run{_tell_attempts(event)}",
        "pulled": f"taken from remote {event.get('remote')} in this run",
    }
    if event["event"] not in ends_well:
        return status
    return replace(status, state=State.DONE, reason=ends_well[event["event"]], duration_s=event.get("duration_s"))


def _tell_attempts(event: Mapping[str, Any]) -> str:
    """Why a job needed more than one attempt. Of what Slurm started again by itself nothing but the number is known."""
    if "job" not in event or event.get("attempt", 1) == 1:
        return ""
    return f", in attempt {event['attempt']}: {event.get('cause') or 'Slurm had started it again'}"
