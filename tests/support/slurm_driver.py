"""A driver in a process of its own that dies by SIGKILL at a chosen moment: `slurm_driver.py RUN_FOLDER MOMENT`.

RUN_FOLDER/submission.pickle holds options and groups; the environment names the cluster.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.slurm_runs import QUICK

from trtx.runners.slurm.commands import LocalShell
from trtx.runners.slurm.folder import Round, SubmissionFolder
from trtx.runners.slurm.outcome import Outcome
from trtx.runners.slurm.runner import SlurmRunner
from trtx.runners.slurm.workspace import LocalWorkspace


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, calls: int = 1) -> None:
    """Die when a function has returned for the n-th time."""
    real: Callable[..., Any] = getattr(owner, name)
    left = [calls]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        answer = real(*arguments, **named)
        left[0] -= 1
        return answer if left[0] else die()

    setattr(owner, name, wrapped)


MOMENTS: dict[str, Callable[[], None]] = {
    "when the groups are written down": lambda: setattr(SubmissionFolder, "add_round", die),
    "when a round is written down": lambda: setattr(Round, "note_try", die),
    "when sbatch is about to be called": lambda: after(Round, "note_try"),
    "when sbatch was called and its reply was not kept": lambda: setattr(Round, "note_job", die),
    "between two groups": lambda: after(Round, "note_job"),
    "when a failed round was taken back": lambda: after(LocalWorkspace, "revoke"),
    "when all is submitted": lambda: None,
}


def main() -> None:
    folder, moment = Path(sys.argv[1]), sys.argv[2]
    options, groups = pickle.loads((folder / "submission.pickle").read_bytes())  # noqa: S301
    MOMENTS[moment]()
    runner = SlurmRunner(options, folder / "slurm", LocalShell(os.environ), timing=QUICK)
    runner.submit(groups)
    while not runner.is_over:
        if any(isinstance(event, Outcome) for event in runner.poll(1)) and moment == "when all is submitted":
            die()


if __name__ == "__main__":
    main()
