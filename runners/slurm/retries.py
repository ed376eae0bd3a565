"""What a task's next round gets, and whether there is one. Both follow from its claims alone, so that any driver, at
any time, comes to the same answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trtx.runners.slurm.attempts import Claim
from trtx.runners.slurm.options import Resources
from trtx.runners.slurm.states import MORE_MEMORY, MORE_TIME, POLICIES, Cause


def may_retry(cause: Cause, claims: Sequence[Claim], resources: Resources) -> bool:
    """Whether a task that ended for `cause` is submitted again, after the rounds its claims tell of."""
    limit, change = POLICIES[cause].retries, POLICIES[cause].change
    # More of what was never asked for cannot be asked for: the limit is the site's own.
    if (change == "more time" and resources.time_s is None) or (change == "more memory" and not resources.memory_bytes):
        return False
    return limit is None or _count(cause, claims) < limit


def next_resources(resources: Resources, claims: Sequence[Claim]) -> Resources:
    """The resources of a task's next round: the group's, changed by every round that was taken back."""
    for claim in claims:
        if claim.kind != "revoke" or not claim.retried:
            continue
        change = POLICIES[Cause(claim.cause)].change
        if change == "more time" and resources.time_s is not None:
            resources = dataclasses.replace(resources, time_s=resources.time_s * MORE_TIME)
        elif change == "more memory" and resources.memory_bytes is not None:
            memory = int(resources.memory_bytes * MORE_MEMORY)
            resources = dataclasses.replace(resources, memory_bytes=memory)
        elif change == "other node" and claim.node and claim.node not in resources.exclude:
            resources = dataclasses.replace(resources, exclude=(*resources.exclude, claim.node))
    return resources


def _count(cause: Cause, claims: Sequence[Claim]) -> int:
    return sum(claim.kind == "revoke" and claim.retried and claim.cause == cause.value for claim in claims)
