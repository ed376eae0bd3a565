"""How the end of a job becomes the error that a step failed with."""

from __future__ import annotations

from pathlib import Path

from trtx.errors import EnvironmentProblem, Interrupted, StepFailed, TimedOut, TrtxError
from trtx.plan.steps import Step
from trtx.runners.slurm.outcome import Outcome
from trtx.runners.slurm.states import Cause
from trtx.stages.job import Result

AGAIN = "run the same `trtx apply` again: finished steps are in the cache"
# Cause → kind of error, why, what to do.
ADVICE: dict[Cause, tuple[type[TrtxError], str, str]] = {
    Cause.TIMEOUT: (TimedOut, "", "allow more time: runners.{runner}.stages.{stage}.time"),
    Cause.MEMORY: (EnvironmentProblem, "", "ask for more memory: runners.{runner}.stages.{stage}.memory"),
    Cause.NODE: (EnvironmentProblem, "a node of the cluster broke, not the step", AGAIN),
    Cause.BOOT: (EnvironmentProblem, "a node of the cluster broke, not the step", AGAIN),
    Cause.WRONG_GPU: (
        EnvironmentProblem,
        "",
        "see which nodes have that GPU: `sinfo -o '%P %G'`; set runners.{runner}.partition or runners.{runner}.gpus",
    ),
    Cause.NO_START: (
        EnvironmentProblem,
        "the job ended before the step began: its setup, modules, container or the node's disk",
        "see what the job printed, and runners.{runner}",
    ),
    Cause.LOST: (EnvironmentProblem, "", AGAIN),
    Cause.PREEMPTED: (EnvironmentProblem, "", AGAIN),
    Cause.CANCELLED: (Interrupted, "", AGAIN),
}


def make_step_error(step: Step, outcome: Outcome, result: Result | None) -> TrtxError:
    """The error of a step whose job did not end well: by its cause, in the step's own words where it failed itself."""
    if outcome.cause is Cause.FAILED and result is not None and result.failure is not None:
        return result.failure.error()
    kind, why, fix = ADVICE.get(outcome.cause, (StepFailed, "", "see the step's log with `trtx logs {step}`"))
    return kind(_sentence(outcome), why=why, fix=fix.format(step=step.id, runner=step.runner, stage=step.stage))


def _sentence(outcome: Outcome) -> str:
    """What happened, where, and how often it was tried."""
    job = f" (job {outcome.job}{f' on {outcome.node}' if outcome.node else ''})" if outcome.job else ""
    tries = f", in attempt {outcome.attempt}" if outcome.attempt > 1 else ""
    return f"{outcome.what or outcome.cause.value}{tries}{job}"


def job_output(submission: Path, job: str) -> Path | None:
    """What a job printed around its step, such as "12_3": its setup, and why it did not start."""
    return next(iter(submission.glob(f"groups/*/rounds/*/slurm-{job}.out")), None) if job else None
