"""Decides what became of a task, from its files and from what Slurm says. A pure function of both and of time.

Files decide. Slurm's word counts where a task could not write how it ended, and then only when it was heard clearly: an
answer that is empty, partial, late or an error is no word at all, and that a job is not listed is none either. Only the
controller's own "Invalid job id", twice and with no heartbeat in between, ends a task it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtx.runners.slurm.attempts import Attempt, End, History
from trtx.runners.slurm.options import Timing
from trtx.runners.slurm.parsing import Row
from trtx.runners.slurm.states import Cause, Phase, find_cause, find_meaning


@dataclass
class Watch:
    """What was heard about one task since it was submitted; times are of the driver's monotonic clock."""

    row: Row | None = None
    # When Slurm first called this start of it ended, and in how many answers in a row.
    ended_since: float | None = None
    ended_readings: int = 0
    # When the controller first said that it does not know the job, and how often.
    denied_since: float | None = None
    denials: int = 0
    # Whether the controller knows the array and has no such task in it: so it is after scancel of one that waits.
    removed: bool = False
    beat: bytes = b""
    beat_at: float | None = None

    def hear(self, row: Row, now: float) -> None:
        """Slurm said something about the task."""
        self.denied_since, self.denials, self.removed = None, 0, False
        if find_meaning(row.state).phase is not Phase.ENDED:
            self.ended_since, self.ended_readings = None, 0
        else:
            self.ended_since = now if self.ended_since is None else self.ended_since
            self.ended_readings += 1
        self.row = row

    def hear_denial(self, now: float) -> None:
        """The controller said that it does not know the job."""
        self.denied_since = now if self.denied_since is None else self.denied_since
        self.denials += 1

    def hear_removal(self, now: float) -> None:
        """The controller listed the task's array without it."""
        self.hear_denial(now)
        self.removed = True

    def see_beat(self, beat: bytes, now: float) -> None:
        """The heartbeat file was read; a change takes back what a denial said."""
        if beat != self.beat or self.beat_at is None:
            self.beat, self.beat_at = beat, now
            self.denied_since, self.denials, self.removed = None, 0, False

    def silent_for(self, now: float) -> float:
        return now - self.beat_at if self.beat_at is not None else 0.0

    @property
    def phase(self) -> Phase | None:
        return find_meaning(self.row.state).phase if self.row else None


@dataclass(frozen=True)
class Verdict:
    """Why a round of a task is over. `what` is one sentence for people."""

    cause: Cause
    what: str = ""
    attempt: Attempt | None = None


def decide(history: History, token: str, watch: Watch, now: float, timing: Timing) -> Verdict | None:
    """Whether the round with `token` of a task is over, and why; None while it is not, or not known to be."""
    if history.done is not None:
        return Verdict(Cause.DONE, attempt=history.done)
    attempt = history.last(token)
    if attempt is not None and attempt.end is not None:
        return _decide_end(attempt, attempt.end, watch, now, timing)
    if attempt is None and watch.removed and (watch.phase is Phase.QUEUED or _is_denied(attempt, watch, now, timing)):
        return Verdict(Cause.CANCELLED, "it was taken out of the queue from outside")
    if _is_denied(attempt, watch, now, timing):
        what = "Slurm does not know its job any more, and " + ("its heartbeat stopped" if attempt else "it never began")
        return Verdict(Cause.LOST, what, attempt)
    return _decide_by_slurm(attempt, watch, now, timing)


def needs_word(history: History, token: str, watch: Watch) -> bool:
    """Whether a task's files say that it ended, but not why: Slurm should be asked soon."""
    attempt = history.last(token)
    if history.done is not None or attempt is None or attempt.end is None:
        return watch.ended_readings == 1
    return attempt.end.state in ("stopped", "killed") and not _known_cause(attempt.end)


def _known_cause(end: End) -> Cause | None:
    """The cause that the node knew by itself."""
    if end.cause:
        return Cause(end.cause)
    return Cause.TIMEOUT if end.by == "limit" else None


def _decide_end(attempt: Attempt, end: End, watch: Watch, now: float, timing: Timing) -> Verdict | None:
    """The task said how it ended; Slurm is asked only for the reason of what came from outside."""
    own = {
        "failed": (Cause.FAILED, end.what or f"the step failed with {_describe_code(end)}"),
        "refused": (Cause.WRONG_GPU, end.what),
        "blocked": (Cause.DEPENDENCY, end.what),
    }
    if end.state in own:
        return Verdict(*own[end.state], attempt)
    if known := _known_cause(end):
        return Verdict(known, end.what or _describe_cause(known, end), attempt)
    assumed = Cause.CANCELLED if end.state == "stopped" else Cause.FAILED
    if watch.phase is Phase.ENDED and watch.row is not None:
        if find_meaning(watch.row.state).requeues and watch.ended_readings < 2:
            return None
        cause = find_cause(watch.row.state, watch.row.reason)
        # Where Slurm saw no more than the exit code, the task knows better.
        cause = assumed if cause in (None, Cause.DONE, Cause.FAILED) else cause
        return Verdict(cause or assumed, _describe_cause(cause or assumed, end), attempt)
    if watch.denials >= 2 and watch.denied_since is not None and now - watch.denied_since >= timing.late_s:
        return Verdict(assumed, f"{_describe_cause(assumed, end)}; Slurm does not know its job any more", attempt)
    return None


def _is_denied(attempt: Attempt | None, watch: Watch, now: float, timing: Timing) -> bool:
    if watch.denials < 2 or watch.denied_since is None or now - watch.denied_since < timing.late_s:
        return False
    return attempt is None or watch.silent_for(now) >= timing.silence_s


def _decide_by_slurm(attempt: Attempt | None, watch: Watch, now: float, timing: Timing) -> Verdict | None:
    """Without a word of the task itself: Slurm's, once it is certain that no other word will come."""
    row = watch.row
    if row and watch.phase is Phase.QUEUED and row.reason.strip("()") == "DependencyNeverSatisfied":
        return Verdict(Cause.DEPENDENCY, "a job it waits for did not end well")
    if row is None or not _is_certain(attempt, row, watch, now, timing):
        return None
    cause = find_cause(row.state, row.reason) or Cause.LOST
    where = f" on {row.node}" if row.node else ""
    if cause is Cause.DONE:
        return Verdict(Cause.LOST, f"Slurm says it is {row.state}{where}, but it left no word of its own", attempt)
    if cause is Cause.FAILED and attempt is None:
        return Verdict(Cause.NO_START, f"its job failed{where} before the step began")
    if cause is Cause.FAILED:
        return Verdict(cause, f"its job was killed{where} before it could say why", attempt)
    return Verdict(cause, f"{cause.value}{where}, says Slurm ({row.state})", attempt)


def _is_certain(attempt: Attempt | None, row: Row, watch: Watch, now: float, timing: Timing) -> bool:
    """Whether Slurm called the task ended clearly enough: twice, its files had time to appear, and it does not beat.

    One that never had a node has no files, so once is enough, unless Slurm may start it again by itself.
    """
    if watch.ended_since is None:
        return False
    never_ran = attempt is None and not row.node
    if never_ran and not find_meaning(row.state).requeues:
        return True
    beats = attempt is not None and watch.silent_for(now) < timing.silence_s
    return watch.ended_readings >= 2 and now - watch.ended_since >= timing.late_s and not beats


def find_disagreement(attempt: Attempt | None, watch: Watch, now: float, timing: Timing) -> str:
    """In what files and Slurm contradict each other; empty when they do not."""
    if attempt is None:
        return ""
    if attempt.end is None:
        alive = watch.beat_at is not None and watch.silent_for(now) < timing.silence_s
        if watch.denials and alive:
            return "Slurm does not know its job, but its heartbeat goes on: it is taken to run"
        if watch.phase is Phase.RUNNING and not alive and watch.beat_at is not None:
            return "Slurm says it runs, but its heartbeat stopped: its node or the file system may hang"
        if watch.phase is Phase.ENDED and alive and watch.row and watch.ended_readings > 1:
            return f"Slurm says it is {watch.row.state}, but its heartbeat goes on: it is taken to run"
    elif attempt.ended_well and watch.phase is Phase.ENDED and watch.row:
        cause = find_cause(watch.row.state, watch.row.reason)
        if cause is not Cause.DONE:
            return f"Slurm says it is {watch.row.state}, but its result is there: it is done"
    return ""


def _describe_cause(cause: Cause, end: End) -> str:
    where = f" on {end.node}" if end.node else ""
    if cause is Cause.CANCELLED:
        return f"it was cancelled from outside{where}"
    if cause is Cause.TIMEOUT:
        return f"it reached its time limit{where}"
    if cause is Cause.MEMORY:
        return f"it needed more memory than its job had{where}"
    return f"{cause.value}{where}: it ended with {_describe_code(end)}"


def _describe_code(end: End) -> str:
    return f"signal {end.signal}" if end.signal else f"exit code {end.exit_code}"
