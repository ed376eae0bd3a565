"""Slurm's words → what they mean here. Sources: squeue(1) "JOB STATE CODES" and "JOB REASON CODES", slurm.h.

A state of Slurm is an opinion: it never ends a task whose own files say otherwise (see `truth`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Phase(StrEnum):
    """Where a job is, by Slurm's word."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class Cause(StrEnum):
    """Why a task ended as it did."""

    DONE = "done"
    FAILED = "failed"
    TIMEOUT = "time limit"
    MEMORY = "out of memory"
    NODE = "node failure"
    BOOT = "node did not boot"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    DEPENDENCY = "dependency never satisfied"
    WRONG_GPU = "wrong GPU"
    NO_START = "did not start"
    LOST = "lost"
    INPUT = "an input is made again"


@dataclass(frozen=True)
class Meaning:
    """`cause` is of an end. `requeues`: Slurm may start the job again, so one reading of the state is not enough."""

    phase: Phase
    cause: Cause | None = None
    requeues: bool = False


STATES: dict[str, Meaning] = {
    # Waiting for something; the reason column says for what.
    "PENDING": Meaning(Phase.QUEUED),
    "CONFIGURING": Meaning(Phase.QUEUED),  # Nodes are being started for it.
    "REQUEUED": Meaning(Phase.QUEUED),
    "REQUEUE_FED": Meaning(Phase.QUEUED),
    "REQUEUE_HOLD": Meaning(Phase.QUEUED),
    "SPECIAL_EXIT": Meaning(Phase.QUEUED),  # Requeued and held by the site's rule; `scontrol release` starts it.
    "RESV_DEL_HOLD": Meaning(Phase.QUEUED),
    "RUNNING": Meaning(Phase.RUNNING),
    "RESIZING": Meaning(Phase.RUNNING),
    "SIGNALING": Meaning(Phase.RUNNING),
    "STAGE_OUT": Meaning(Phase.RUNNING),
    "STOPPED": Meaning(Phase.RUNNING),  # Stopped by a signal; it keeps its processors.
    "SUSPENDED": Meaning(Phase.RUNNING),  # It gave its processors away for a while.
    # Over or to be requeued: only the state after it tells.
    "COMPLETING": Meaning(Phase.ENDING),
    "COMPLETED": Meaning(Phase.ENDED, Cause.DONE),
    "FAILED": Meaning(Phase.ENDED, Cause.FAILED),
    "TIMEOUT": Meaning(Phase.ENDED, Cause.TIMEOUT),
    "DEADLINE": Meaning(Phase.ENDED, Cause.TIMEOUT),  # sbatch --deadline: it could not end in time.
    "OUT_OF_MEMORY": Meaning(Phase.ENDED, Cause.MEMORY),
    "CANCELLED": Meaning(Phase.ENDED, Cause.CANCELLED),
    "NODE_FAIL": Meaning(Phase.ENDED, Cause.NODE, requeues=True),
    "BOOT_FAIL": Meaning(Phase.ENDED, Cause.BOOT, requeues=True),
    "LAUNCH_FAILED": Meaning(Phase.ENDED, Cause.NODE, requeues=True),
    "PREEMPTED": Meaning(Phase.ENDED, Cause.PREEMPTED, requeues=True),
    "REVOKED": Meaning(Phase.ENDED, Cause.CANCELLED),  # A sibling in another cluster of the federation runs.
}
# A state this version does not know tells nothing, so nothing is concluded from it.
UNKNOWN = Meaning(Phase.RUNNING)

# Reasons that override the state's cause.
REASONS: dict[str, Cause] = {
    "DependencyNeverSatisfied": Cause.DEPENDENCY,
    "TimeLimit": Cause.TIMEOUT,
    "NodeDown": Cause.NODE,
    "OutOfMemory": Cause.MEMORY,
}

# What waiting jobs wait for, for people; those not listed are shown as Slurm writes them.
WAITING: dict[str, str] = {
    "None": "not looked at yet",
    "Priority": "others are before it",
    "Resources": "for free resources",
    "Dependency": "for other jobs",
    "DependencyNeverSatisfied": "for a job that failed, so for ever",
    "JobArrayTaskLimit": "throttled",
    "BeginTime": "for its start time (requeued jobs wait a few minutes)",
    "ReqNodeNotAvail": "for a node that is drained, down or reserved",
    "Nodes required for job are DOWN": "for a node that is drained, down or reserved",  # Where no other fits.
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is not active",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "PartitionNodeLimit": "asks for more nodes than the partition has",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "for licences",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as the QOS allows",
    "QOSGrpGRES": "the QOS has all its GPUs in use",
    "AssocGrpGRES": "the account has all its GPUs in use",
    "AssocMaxJobsLimit": "the account has as many jobs running as it may",
    "Reservation": "for its reservation",
    "launch failed requeued held": "could not be launched and is held; `scontrol release` tries again",
}

Change = Literal["", "more time", "more memory", "other node"]


@dataclass(frozen=True)
class Policy:
    """How often a task is submitted again after a cause (None: always), and with what changed."""

    retries: int | None
    change: Change = ""


POLICIES: dict[Cause, Policy] = {
    Cause.FAILED: Policy(0),  # The step's own failure comes again.
    Cause.TIMEOUT: Policy(1, "more time"),
    Cause.MEMORY: Policy(1, "more memory"),
    Cause.NODE: Policy(2, "other node"),
    Cause.BOOT: Policy(2, "other node"),
    Cause.WRONG_GPU: Policy(1, "other node"),
    Cause.NO_START: Policy(1, "other node"),  # The node's disk, mounts or container runtime, or the site's setup.
    Cause.PREEMPTED: Policy(None),
    Cause.CANCELLED: Policy(0),  # Somebody wanted it to end.
    Cause.DEPENDENCY: Policy(5),  # Only when what it needs has been made or runs again.
    Cause.LOST: Policy(1),
    Cause.INPUT: Policy(None),  # What it needs is submitted again, so it is too.
}
MORE_TIME = 2.0
MORE_MEMORY = 2.0


def find_meaning(state: str) -> Meaning:
    """The meaning of a state as squeue or sacct prints it, such as "CANCELLED by 1000" or "COMPLETED+"."""
    words = state.upper().split()
    return STATES.get(words[0].rstrip("+"), UNKNOWN) if words else UNKNOWN


def find_cause(state: str, reason: str) -> Cause | None:
    """Why a job that Slurm calls ended did so; None for one that has not ended."""
    meaning = find_meaning(state)
    if meaning.phase is not Phase.ENDED or meaning.cause is Cause.DONE:
        return meaning.cause
    return REASONS.get(reason.strip("()"), meaning.cause)


def describe_waiting(reason: str) -> str:
    """A queue reason for people. Slurm puts details after a comma: "ReqNodeNotAvail, UnavailableNodes:n1"."""
    word, _, detail = reason.strip("()").partition(",")
    known = WAITING.get(word.strip())
    return f"{known}{':' + detail.partition(':')[2] if ':' in detail else ''}" if known else reason.strip("()")
