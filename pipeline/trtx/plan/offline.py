"""Refusals before anything runs: what a plan would have to fetch and may not, or has and should not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trtx.errors import EnvironmentProblem
from trtx.models.sources.base import Kind, Request, find_source, is_offline
from trtx.plan.environment import FETCHING_STAGES
from trtx.plan.steps import Step
from trtx.plan.survey import State, StepStatus
from trtx.stages.expected import check_expected


def check_locked_files(statuses: Iterable[StepStatus]) -> None:
    """Hold what the cache or a remote has against the digests of the lock. Raises VerificationFailed."""
    for status in statuses:
        manifest = status.manifest or (status.hit.offer.manifest if status.hit else None)
        if manifest is not None:
            check_expected(status.step.id, status.step.expected, manifest.files)


def check_offline(statuses: Iterable[StepStatus], environ: Mapping[str, str]) -> None:
    """Without the network, refuse a plan with steps that need it. Raises EnvironmentProblem for the first of them."""
    if not is_offline(environ):
        return
    for status in statuses:
        step = status.step
        if status.state is State.TO_RUN and step.stage in FETCHING_STAGES and not _is_at_hand(step, environ):
            raise EnvironmentProblem(
                f"{step.id} needs the network, which may not be used",
                why=f"{step.params['url']} at {step.params['identity']} is not in the cache",
                fix="run `trtx lock RECIPE` once with a network: it pins and fetches what the recipe names",
            )


def _is_at_hand(step: Step, environ: Mapping[str, str]) -> bool:
    """Whether a step's source is on this machine: a folder, or a commit in the hub's own cache."""
    kind: Kind = "model" if step.stage == "download" else "dataset"
    allow_pickle, split = step.params.get("allow_pickle", False), step.params.get("split")
    request = Request(step.params["url"], kind, allow_pickle=allow_pickle, split=split, environ=environ)
    return find_source(request.url).is_at_hand(request, step.params["identity"])
