"""`trtx` whose driver looks and asks more often than in earnest, and may die: `python -m support.slurm_trtx ARGUMENT…`.

DIE_WHEN names the moment at which it is killed by SIGKILL: a driver may die at any instruction.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from typing import Any

from support.slurm_runs import QUICK

from trtx.plan import cluster_open
from trtx.plan.cluster_follow import Follower
from trtx.runners.slurm.folder import Round, SubmissionFolder
from trtx.runners.slurm.remote import SshWorkspace
from trtx.runners.slurm.workspace import LocalWorkspace


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str) -> Callable[[], None]:
    """Die in place of a function's first call."""
    return lambda: setattr(owner, name, die)


def after(owner: type, name: str) -> Callable[[], None]:
    """Die when a function has returned for the first time."""

    def arm() -> None:
        real: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, lambda *arguments, **named: (real(*arguments, **named), die()))

    return arm


MOMENTS: dict[str, Callable[[], None]] = {
    "when the orders are written down": before(SubmissionFolder, "prepare"),
    "when the groups are written down": before(SubmissionFolder, "add_round"),
    "when a round is written down": before(Round, "note_try"),
    "when sbatch is about to be called": after(Round, "note_try"),
    "when sbatch was called and its reply was not kept": before(Round, "note_job"),
    "between two groups": after(Round, "note_job"),
    "when all is submitted": after(Follower, "submit"),
    "when a failed round was taken back": after(LocalWorkspace, "revoke"),
    "when the end of a step is about to be told": before(Follower, "_tell"),
}


def main() -> None:
    real = cluster_open.open_cluster

    def open_cluster(*given: Any) -> cluster_open.Cluster:
        made = dataclasses.replace(real(*given), timing=QUICK)
        if isinstance(made.workspace, SshWorkspace):
            made.workspace.every_s = 0.3
        return made

    # Whoever imports it later imports this one.
    cluster_open.open_cluster = open_cluster
    if moment := os.environ.pop("DIE_WHEN", ""):
        MOMENTS[moment]()
    from trtx.cli.main import run

    run()


if __name__ == "__main__":
    main()
