"""Every error a user can meet, its exit code, and the one way to word it: what, why, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TrtxError(Exception):
    """An error with a message for people.

    `what` is one sentence and always present; `why` the cause or the evidence; `fix` what to do next. `document` is
    what `-o json` prints instead of the error alone, for verbs that can say more than that they failed.
    """

    exit_code = 1
    document: dict[str, Any] | None = None

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def render(self) -> str:
        """The message as printed: `error: what`, then `why:` and `fix:` lines where present."""
        lines = [f"error: {self.what}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The error for tools."""
        kind = type(self).__name__
        return {"kind": kind, "what": self.what, "why": self.why, "fix": self.fix, "exit_code": self.exit_code}


class StepFailed(TrtxError):
    """A step ran and failed."""

    exit_code = 1


class UsageProblem(TrtxError):
    """Wrong arguments, or a recipe that is invalid."""

    exit_code = 2


class GateFailed(TrtxError):
    """A gate said NO-GO."""

    exit_code = 3


class Inconclusive(TrtxError):
    """A gate could not be decided."""

    exit_code = 4


class EnvironmentProblem(TrtxError):
    """This machine, its network or its disks cannot do what was asked."""

    exit_code = 6


class LockOutOfDate(TrtxError):
    """The lock file does not match the recipe."""

    exit_code = 7


class VerificationFailed(TrtxError):
    """An artefact is not what it claims to be."""

    exit_code = 8


class TimedOut(TrtxError):
    """A stated time limit passed."""

    exit_code = 124


class Interrupted(TrtxError):
    """The user stopped the run."""

    exit_code = 130


# Exit code of `trtx plan --detailed-exitcode` when something would run; not an error.
EXIT_PLAN_HAS_CHANGES = 5

# How a failure travels through a step's result.json and back: class name → class.
BY_NAME: dict[str, type[TrtxError]] = {
    cls.__name__: cls
    for cls in (
        StepFailed,
        UsageProblem,
        GateFailed,
        Inconclusive,
        EnvironmentProblem,
        LockOutOfDate,
        VerificationFailed,
        TimedOut,
        Interrupted,
    )
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to a mistyped one, or None when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known when nothing is close."""
    names = list(known)
    match = nearest(word, names)
    return f"did you mean '{match}'?" if match else f"known: {', '.join(sorted(names))}"
