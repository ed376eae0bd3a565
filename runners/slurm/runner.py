"""The Slurm runner: submits groups of tasks, follows them, submits again what may be, cancels.

Everything it knows is in the submission's folder and in the tasks' own; a second runner on the same folder, on this or
another login node, goes on where the first stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from trtx.errors import UsageProblem
from trtx.runners.slurm.attempts import Claim, End, attempt_folder
from trtx.runners.slurm.budget import Budget
from trtx.runners.slurm.clock import Clock, RealClock
from trtx.runners.slurm.commands import Shell, cancel_jobs
from trtx.runners.slurm.folder import Round, SubmissionFolder
from trtx.runners.slurm.groups import Group
from trtx.runners.slurm.listener import Listener
from trtx.runners.slurm.options import SlurmOptions, Timing
from trtx.runners.slurm.outcome import Began, Event, Notice, Outcome, Retried, TaskState, TaskStatus
from trtx.runners.slurm.retries import may_retry
from trtx.runners.slurm.rounds import Rounds
from trtx.runners.slurm.states import POLICIES, Cause
from trtx.runners.slurm.submit import Submitter, find_in_rows
from trtx.runners.slurm.tracked import Tracked
from trtx.runners.slurm.truth import Verdict, decide, find_disagreement
from trtx.runners.slurm.workspace import LocalWorkspace, Workspace


class SlurmRunner:
    """One submission in `folder`. Made on a folder that holds one, it adopts it.

    `max_array` is the cluster's MaxArraySize where it is known: larger groups are submitted in parts.
    """

    def __init__(
        self,
        options: SlurmOptions,
        folder: Path,
        shell: Shell,
        *,
        timing: Timing | None = None,
        clock: Clock | None = None,
        workspace: Workspace | None = None,
        max_array: int | None = None,
    ) -> None:
        self._options, self._shell = options, shell
        self._timing, self._clock = timing or Timing(), clock or RealClock()
        self._workspace = workspace or LocalWorkspace()
        self._folder = SubmissionFolder(folder)
        self._budget = Budget(self._timing)
        self._notices: list[Event] = []
        self._listener = Listener(shell, self._timing, self._clock, self._budget, self._tell)
        self._tasks: dict[str, Tracked] = {}
        submitter = Submitter(shell, self._timing, self._clock, self._budget, self._tell, self._workspace.place)
        self._rounds = Rounds(self._folder, options, self._timing, self._workspace, submitter, self._tasks, max_array)
        self._by_group: dict[str, dict[int, Tracked]] = {}
        self._news: dict[str, set[str]] = {}
        self._unsettled = True
        if (folder / "submission.json").exists():
            self._workspace.pull()
            self._load()

    @property
    def sbatch_calls(self) -> int:
        """Calls of sbatch by this driver."""
        return self._rounds.submitter.calls

    @property
    def questions(self) -> int:
        """Questions to the controller by this driver."""
        return self._budget.total

    @property
    def is_over(self) -> bool:
        return all(item.outcome is not None for item in self._tasks.values())

    def submit(self, groups: Sequence[Group]) -> list[Event]:
        """Submit groups, those a group needs before it; waits until Slurm has taken all, so that the driver may leave.

        Idempotent: groups that stand in the folder are left as they are. Raises UsageProblem when Slurm refuses one and
        EnvironmentProblem when it does not answer; what was submitted by then stays submitted.
        """
        self._folder.prepare()
        number = len(self._folder.groups())
        for offset, group in enumerate(groups):
            self._folder.add_group(group, number + offset)
        self._load()
        events: list[Event] = []
        while True:
            events += self._step()
            if all(item.job for item in self._rounds.open()):
                return events
            self._clock.sleep(min(self._timing.files_s, self._timing.retry_s))

    def poll(self, timeout_s: float) -> list[Event]:
        """What happened since the last call; waits for something at most `timeout_s` seconds."""
        deadline = self._clock.now() + timeout_s
        while True:
            events = self._step()
            remaining = deadline - self._clock.now()
            if events or remaining <= 0 or self.is_over:
                return events
            self._clock.sleep(min(self._timing.files_s, remaining))

    def status(self) -> list[TaskStatus]:
        """All tasks in the order they were given."""
        return [item.status() for item in self._tasks.values()]

    def outcomes(self) -> list[Outcome]:
        """The ends of all tasks that have ended."""
        return [item.outcome for item in self._tasks.values() if item.outcome is not None]

    def silence(self) -> str:
        """Why nothing is heard from Slurm at present; empty when it answers."""
        return self._listener.complaint

    def cancel(self) -> str:
        """End everything that has not ended, and nothing else; returns Slurm's complaint, empty when there was none.

        What Slurm cannot be told now ends by itself: its claims are taken back.
        """
        self._folder.note_cancelled()
        self._workspace.pull()
        open_tasks = [item for item in self._tasks.values() if item.outcome is None]
        for item in open_tasks:
            item.read()
        jobs = sorted({item.job_id for item in open_tasks if item.job_id and item.history.done is None})
        whole = _merge_jobs(open_tasks, jobs)
        for item in open_tasks:
            if item.history.done is None:
                self._revoke(item, Verdict(Cause.CANCELLED, "it was cancelled"), retried=False)
        unknown = [item for item in self._rounds.all() if not item.job and item.tries]
        rows = self._listener.rows
        whole += [job for item in unknown for job in find_in_rows(item, rows)]
        self._step()
        return cancel_jobs(self._shell, whole, self._timing.command_s)

    # --- following ---------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read all groups, rounds and histories; tasks already followed keep what was heard of them."""
        self._unsettled = True
        for group in self._folder.groups():
            rounds = self._rounds.load(group.name)
            for task in group.tasks:
                if task.step not in self._tasks:
                    self._tasks[task.step] = item = Tracked(group, task)
                    self._by_group.setdefault(group.name, {})[task.index] = item
                    for known in rounds:
                        if task.index in known.indices:
                            item.enter(known)
                    item.read()
                    item.told = item.history.attempts[-1].number if item.history.attempts else 0

    def _step(self) -> list[Event]:
        """One turn: read files, ask Slurm if it is time, decide, submit. A turn without news looks at no task."""
        self._workspace.pull()
        changed = list(self._changed())
        for item in changed:
            item.read()
        if self._listener.listen(self._tasks.values()):
            changed = list(self._tasks.values())
            self._cancel_duplicates()
        events: list[Event] = []
        for item in changed:
            events += self._follow(item)
        if events or self._unsettled:
            self._unsettled = False
            events += self._advance()
        events += self._notices
        self._notices = []
        return events

    def _changed(self) -> Iterable[Tracked]:
        """Open tasks that left a name since the last look, or that wait for files Slurm's word says must come."""
        for group, by_index in self._by_group.items():
            names = self._folder.news(group)
            new = names - self._news.get(group, set())
            self._news[group] = names
            indices = {int(name.split(".")[0]) for name in new if name.split(".")[0].isdigit()}
            for index in sorted(indices & by_index.keys()):
                if by_index[index].outcome is None:
                    yield by_index[index]
        for item in self._tasks.values():
            if item.outcome is None and (item.watch.ended_since is not None or item.watch.denials):
                yield item

    def _follow(self, item: Tracked) -> list[Event]:
        """What there is to report of one task, and the decision about its round."""
        if item.outcome is not None or item.round is None:
            return []
        events: list[Event] = []
        attempt, now = item.attempt, self._clock.now()
        if attempt is not None and attempt.number > item.told:
            item.told = attempt.number
            events.append(Began(item.task.step, attempt.number, item.job_id, attempt.claim.node))
        if item.watch.ended_since is not None or item.watch.denials:
            item.see_beat(now)
        item.noticed = self._disagreement(item, now)
        revocation = item.history.revocation(item.token)
        if revocation is not None and item.history.done is None:
            if not revocation.retried:
                events.append(item.conclude(Verdict(Cause(revocation.cause), revocation.what)))
            return events
        verdict = decide(item.history, item.token, item.watch, now, self._timing)
        return events + (self._settle(item, verdict) if verdict else [])

    def _disagreement(self, item: Tracked, now: float) -> str:
        found = find_disagreement(item.attempt, item.watch, now, self._timing)
        if found and found != item.noticed:
            self._tell(f"{item.task.step}: {found}")
        return found

    def _settle(self, item: Tracked, verdict: Verdict) -> list[Event]:
        """A round of a task is over: report its end, or take the round back so that another may follow."""
        if verdict.cause is Cause.DONE:
            return [item.conclude(verdict)]
        attempt = verdict.attempt
        if verdict.cause is Cause.NO_START and (words := item.last_words()):
            verdict = Verdict(verdict.cause, f"{verdict.what}: {words}")
        if attempt is not None and attempt.end is None:
            end = End("killed", cause=verdict.cause.value, what=verdict.what, time=time.time(), writer="driver")
            self._workspace.end(attempt_folder(item.task.folder, attempt.number), end)
        assert item.round is not None  # noqa: S101
        retried = (
            not self._folder.is_cancelled()
            and may_retry(verdict.cause, item.history.claims, item.round.resources)
            and (verdict.cause is not Cause.DEPENDENCY or self._can_be_made(item))
        )
        self._revoke(item, verdict, retried=retried)
        if item.history.done is not None:
            return [item.conclude(Verdict(Cause.DONE, attempt=item.history.done))]
        if not retried:
            return [item.conclude(verdict)]
        events: list[Event] = [Retried(item.task.step, verdict.cause, verdict.what, POLICIES[verdict.cause].change)]
        return events + self._take_back_dependents(item)

    def _revoke(self, item: Tracked, verdict: Verdict, *, retried: bool) -> None:
        """Take a task's round back: what has not started never will, what runs leaves."""
        if item.round is None:
            return
        row = item.watch.row
        node = verdict.attempt.claim.node if verdict.attempt else (row.node if row else "")
        claim = Claim(
            "revoke",
            item.token,
            index=item.task.index,
            node=node,
            time=round(time.time(), 3),
            cause=verdict.cause.value,
            what=verdict.what,
            retried=retried,
        )
        self._workspace.revoke(item.task.folder, claim)
        item.read()

    def _can_be_made(self, item: Tracked) -> bool:
        """Whether all that a task needs is made or may still be."""
        needs = [self._tasks[step] for step in item.task.needs if step in self._tasks]
        return all(need.outcome is None or need.outcome.state is TaskState.DONE for need in needs)

    def _take_back_dependents(self, failed: Tracked) -> list[Event]:
        """Slurm ends what waits for a job that failed; when that is made again, so is what waits for it."""
        events: list[Event] = []
        again = {failed.task.step}
        jobs = []
        for item in self._tasks.values():
            if not again & set(item.task.needs) or item.outcome is not None or item.round is None or item.revoked:
                continue
            again.add(item.task.step)
            if item.attempt is not None and item.attempt.end is None:
                continue
            jobs += [item.job_id] if item.job else []
            verdict = Verdict(Cause.INPUT, f"{failed.task.step} is made again")
            self._revoke(item, verdict, retried=True)
            events.append(Retried(item.task.step, Cause.INPUT, verdict.what))
        cancel_jobs(self._shell, jobs, self._timing.command_s)
        return events

    def _cancel_duplicates(self) -> None:
        for item in self._rounds.open():
            if item.tries > 1 and item.job:
                self._rounds.submitter.cancel_duplicates(item, self._listener.rows)

    # --- submitting --------------------------------------------------------------------------------------------

    def _advance(self) -> list[Event]:
        """Conclude what cannot be made any more, write down new rounds, and submit what is not."""
        events = self._block()
        if not self._folder.is_cancelled():
            self._rounds.add()
            for item in self._rounds.open():
                if not item.job:
                    events += self._submit(item)
                    self._unsettled = self._unsettled or not item.job
        return events

    def _submit(self, item: Round) -> list[Event]:
        """Submit a round; when Slurm refuses to try again what failed, it has failed. Raises what submitting does."""
        try:
            self._rounds.submit(item)
        except UsageProblem as error:
            if item.number == 1:
                raise
            return [self._give_up(task, error) for task in self._rounds.members(item)]
        return []

    def _block(self) -> list[Event]:
        """End tasks that need one that ended badly, unless they run: their own files tell then."""
        events: list[Event] = []
        jobs: list[str] = []
        for item in self._tasks.values():
            if item.outcome is not None or self._can_be_made(item) or item.history.done is not None:
                continue
            if item.attempt is not None and item.attempt.end is None and not item.revoked:
                continue
            bad = next(
                step
                for step in item.task.needs
                if step in self._tasks and (end := self._tasks[step].outcome) and end.state is not TaskState.DONE
            )
            verdict = Verdict(Cause.DEPENDENCY, f"{bad} did not end well")
            self._revoke(item, verdict, retried=False)
            events.append(item.conclude(verdict))
            jobs += [item.job_id] if item.job_id else []
        # Slurm would keep some of them until all that they wait for has ended, and then start them.
        cancel_jobs(self._shell, jobs, self._timing.command_s)
        return events

    def _give_up(self, item: Tracked, error: UsageProblem) -> Event:
        """Slurm refuses what would be tried again: the task ends with the cause it had."""
        last = [claim for claim in item.history.claims if claim.kind == "revoke"][-1]
        verdict = Verdict(Cause(last.cause), f"{last.what}; another round was refused: {error.why}")
        self._revoke(item, verdict, retried=False)
        return item.conclude(verdict)

    def _tell(self, what: str) -> None:
        self._notices.append(Notice(what))


def _merge_jobs(tasks: Sequence[Tracked], jobs: Sequence[str]) -> list[str]:
    """Task ids to cancel; where all tasks of an array are among them, the array's id alone."""
    merged = list(jobs)
    for item in {task.token: task.round for task in tasks if task.round and task.round.job}.values():
        members = [f"{item.job}_{index}" for index in item.array_indices]
        if set(members) <= set(merged):
            merged = [item.job, *(job for job in merged if job not in members)]
    return merged
