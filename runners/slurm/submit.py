"""Submits a round exactly once, whatever becomes of the replies.

Before sbatch is called a file says so. Where that file is and no job id, the token is looked up, in what the tasks
wrote and in the queue, before sbatch is called again. Should a lookup miss a job that is there after all, the claims of
`attempts` see to it that each task still runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from trtx.errors import EnvironmentProblem, UsageProblem
from trtx.runners.slurm.attempts import read_claims
from trtx.runners.slurm.budget import Budget
from trtx.runners.slurm.clock import Clock
from trtx.runners.slurm.commands import (
    Reply,
    Shell,
    ask_squeue,
    cancel_jobs,
    classify_submission,
    is_limit,
    sbatch_argv,
)
from trtx.runners.slurm.folder import Round
from trtx.runners.slurm.groups import Group
from trtx.runners.slurm.options import Timing
from trtx.runners.slurm.parsing import Row

# Words of a refusal → what to do.
REFUSALS = {
    "command not found": "run trtx where Slurm's programs are, or name a login node to submit from",
    "invalid account": "set the runner's account to one of yours: sacctmgr show associations user=$USER",
    "invalid partition": "set the runner's partition to one that `sinfo` lists",
    "invalid qos": "set the runner's qos to one you may use",
    "invalid feature": "the constraint names a feature no node has: see `sinfo -o '%n %f'`",
    "node configuration is not available": "no node has so many GPUs, CPUs or so much memory: see `sinfo -N -l`",
    "generic resource": "the GPU type is not one of this cluster's: see `sinfo -o %G`",
    "time limit": "ask for less time, or name a partition that allows it",
    "reservation": "the reservation is not there or not for you: see `scontrol show reservation`",
    "job array": "see MaxArraySize in `scontrol show config`: 0 forbids arrays",
    "license": "see `scontrol show licenses`",
}


class Submitter:
    """Calls sbatch. One call of `submit` makes at most one attempt, and none before its time has come."""

    def __init__(
        self,
        shell: Shell,
        timing: Timing,
        clock: Clock,
        budget: Budget,
        tell: Callable[[str], None],
        place: Callable[[Path], Path],
    ) -> None:
        self._place = place
        self._shell, self._timing, self._clock, self._budget, self._tell = shell, timing, clock, budget, tell
        self._next_try: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self.calls = 0

    def submit(self, group: Group, item: Round, dependency: str, comment: str, *, others: bool = False) -> bool:
        """Submit a round that has no job id yet; whether it has one now.

        With `others` jobs of the same submission are open, so that limits on the number of jobs are waited for.
        Raises UsageProblem when Slurm refuses it, EnvironmentProblem when it was busy or silent too often.
        """
        now = self._clock.now()
        if now < self._next_try.get(item.token, 0.0):
            return False
        if item.tries and not self._look_up(group, item):
            return False
        if item.job:
            return True
        item.note_try()
        self.calls += 1
        argv = sbatch_argv(self._place(item.script), name=item.name, comment=comment, dependency=dependency)
        exported = sorted({name for task in group.tasks for name in task.inherit})
        reply, said = classify_submission(self._shell.call(argv, timeout_s=self._timing.command_s, exported=exported))
        if reply is Reply.ACCEPTED:
            item.note_job(said, "reply")
            return True
        if reply is Reply.REFUSED:
            fix = next((fix for word, fix in REFUSALS.items() if word in said.lower()), "")
            raise UsageProblem(f"Slurm refuses the jobs of {group.name}", why=said, fix=fix or f"see {item.script}")
        self._postpone(group, item, said, patient=others and is_limit(said))
        return False

    def _postpone(self, group: Group, item: Round, said: str, *, patient: bool = False) -> None:
        """Try again later, each time later than before; after so many times give up, unless `patient`."""
        failures = self._failures[item.token] = self._failures.get(item.token, 0) + 1
        item.complaint = said
        if failures > self._timing.retries and not patient:
            raise EnvironmentProblem(
                f"Slurm did not take the jobs of {group.name} in {failures} attempts",
                why=said,
                fix="nothing is lost: attach to the run when Slurm answers again",
            )
        wait_s = min(self._timing.retry_s * 2 ** min(failures - 1, 20), self._timing.last_retry_s)
        self._next_try[item.token] = self._clock.now() + wait_s
        self._tell(f"{group.name}: sbatch: {said}; looking again in {wait_s:g} s")

    def _look_up(self, group: Group, item: Round) -> bool:
        """Find a job that sbatch may have made; False when that cannot be known now."""
        job = find_in_files(group, item)
        if job:
            item.note_job(job, "files")
            return True
        if not self._budget.may_ask(self._clock.now()):
            return False
        self._budget.note(self._clock.now())
        listing = ask_squeue(self._shell, self._timing.command_s)
        if listing.complaint:
            self._postpone(group, item, listing.complaint)
            return False
        jobs = find_in_rows(item, listing.rows)
        if jobs:
            item.note_job(jobs[0], "queue")
            self._tell(f"{group.name}: job {jobs[0]} had been submitted; its reply was lost")
            self.cancel_duplicates(item, listing.rows)
        return True

    def cancel_duplicates(self, item: Round, rows: Iterable[Row]) -> None:
        """Cancel what waits in the queue for a round a second time; what runs sees to itself."""
        others = [job for job in find_in_rows(item, rows) if job != item.job]
        if others:
            self._tell(f"{item.group}: jobs {', '.join(others)} do the same as {item.job} and are cancelled")
            cancel_jobs(self._shell, others, self._timing.command_s, pending_only=True)


def find_in_files(group: Group, item: Round) -> str:
    """The job that a task of the round says it belongs to; empty when none has started."""
    for index in item.indices:
        for claim in read_claims(group.task(index).folder):
            if claim.kind == "start" and claim.token == item.token:
                return claim.job
    return ""


def find_in_rows(item: Round, rows: Iterable[Row]) -> list[str]:
    """Ids of all jobs that carry the round's token, oldest first."""
    found: Sequence[str] = [row.job for row in rows if is_of(item, row)]
    return sorted(set(found), key=int)


def is_of(item: Round, row: Row) -> bool:
    """Whether a row is about the round: ids are used again after a controller lost its state, tokens are not."""
    return item.token in row.name or item.token in row.comment
