"""Slurm's commands: making argv, calling them, reading what they say are three different functions.

Whoever calls is a `Shell`: this machine, a login node behind ssh, or a simulated cluster.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from trtx.runners.slurm.parsing import SACCT_FORMAT, SQUEUE_FORMAT, Row, parse_sacct, parse_scontrol, parse_squeue

# What a job sees of the environment it was submitted from, beside what its tasks inherit by name.
BASIC_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ")
# Of the user's SLURM_*, SBATCH_*, SQUEUE_* … only those that name the cluster: the others change what commands do.
CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS")
# SLURM_BITSTR_LEN=0: squeue prints the indices of an array whole.
COMMAND_SETTINGS = {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard"}
COMMAND_VARIABLES = re.compile(r"(SLURM|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL|SINFO)_")


@dataclass(frozen=True)
class Answer:
    """What a command said; `code` is None when it did not answer in time or could not be started."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def complaint(self) -> str:
        """The last line it complained with, without the program's name."""
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        said = re.sub(r"^\w+: (error: )?", "", lines[-1]) if lines else ""
        return said or ("it did not answer" if self.code is None else f"exit status {self.code}")


class Shell(Protocol):
    """Where Slurm's commands are called."""

    def call(self, argv: Sequence[str], *, timeout_s: float, exported: Sequence[str] | None = None) -> Answer:
        """Run a command to its end. With `exported` its environment holds basic variables and those named."""
        ...


@dataclass(frozen=True)
class LocalShell:
    """Commands of this machine; `environ` is the environment of trtx."""

    environ: Mapping[str, str]

    def call(self, argv: Sequence[str], *, timeout_s: float, exported: Sequence[str] | None = None) -> Answer:
        environment = command_environment(self.environ, exported)
        try:
            done = subprocess.run(
                list(argv),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
            return Answer(
                None, err=f"{argv[0]} did not answer within {timeout_s:g} s{''.join(f': {line}' for line in said)}"
            )
        except FileNotFoundError:
            return Answer(127, err=f"{argv[0]}: command not found")
        except OSError as error:
            return Answer(None, err=f"{argv[0]} could not be started: {os.strerror(error.errno or 0)}")
        return Answer(done.returncode, done.stdout, done.stderr)


def command_environment(environ: Mapping[str, str], exported: Sequence[str] | None) -> dict[str, str]:
    """The environment of one of Slurm's commands; with `exported` it is what a job inherits."""
    kept = {name: environ[name] for name in CLUSTER_VARIABLES if name in environ}
    if exported is not None:
        return {name: environ[name] for name in (*BASIC_VARIABLES, *exported) if name in environ} | kept
    others = {name: value for name, value in environ.items() if not COMMAND_VARIABLES.match(name)}
    return {**others, **kept, **COMMAND_SETTINGS}


class Reply(Enum):
    """What became of a submission."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # It was looked at and not taken; asking again gives the same answer.
    BUSY = "busy"  # It was not taken now.
    UNCLEAR = "unclear"  # It may have been taken.


# Words of sbatch's complaints, in this order; the first that matches counts. Source: slurm_errno.c.
UNCLEAR_WORDS = ("socket timed out", "zero bytes", "unexpected message", "connection reset", "transmission")
BUSY_WORDS = (
    "unable to contact slurm controller",
    "temporarily unable",
    "resource temporarily unavailable",
    "unable to create job",  # ESLURM_… of a full job table
    "maxsubmitjob",
    "qos policy",
    "presently disabled",
    "standby mode",
    "communication connection failure",
    "security violation",  # munge restarts
    "protocol authentication error",
    "job dependency problem",  # A job it waits for ended meanwhile; it is looked at again.
    "slurm_load",
)


def classify_submission(answer: Answer) -> tuple[Reply, str]:
    """What became of a submission, with the job id or the complaint."""
    if answer.code == 0:
        match = re.search(r"^(\d+)(;\S*)?\s*$", answer.out, re.MULTILINE)
        return (Reply.ACCEPTED, match[1]) if match else (Reply.UNCLEAR, f"sbatch printed {answer.out.strip()!r}")
    said = (answer.err + answer.out).lower()
    if answer.code is None:
        return Reply.UNCLEAR, answer.complaint
    if any(word in said for word in UNCLEAR_WORDS):
        return Reply.UNCLEAR, answer.complaint
    if any(word in said for word in BUSY_WORDS):
        return Reply.BUSY, answer.complaint
    return (Reply.REFUSED if "sbatch: " in answer.err else Reply.UNCLEAR), answer.complaint


# Complaints about how many jobs there may be: when others end, there is room.
LIMIT_WORDS = ("maxsubmitjob", "accounting/qos policy", "unable to create job", "unable to accept job")


def is_limit(said: str) -> bool:
    """Whether a submission was not taken because there are too many jobs."""
    return any(word in said.lower() for word in LIMIT_WORDS)


@dataclass(frozen=True)
class Listing:
    """What a question about jobs gave. `complaint` is set when it gave no answer; `unreadable` counts bad lines."""

    rows: tuple[Row, ...] = ()
    unreadable: int = 0
    complaint: str = ""
    # Jobs the controller itself says it does not know: the only absence that means anything.
    denied: tuple[str, ...] = ()


def sbatch_argv(script: Path, *, name: str, comment: str, dependency: str, test_only: bool = False) -> list[str]:
    """Submit a script in its own folder; the token is in name and comment."""
    argv = ["sbatch", "--parsable", f"--chdir={script.parent}", f"--job-name={name}", f"--comment={comment}"]
    if dependency:
        argv += [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]
    return [*argv, *(["--test-only"] if test_only else []), str(script)]


def squeue_argv() -> list[str]:
    """All jobs of this user that the controller still remembers, in one question."""
    return ["squeue", "--me", "--states=all", "--noheader", f"--format={SQUEUE_FORMAT}"]


def sacct_argv(jobs: Sequence[str]) -> list[str]:
    words = ["sacct", "--allocations", "--noheader", "--parsable2", f"--format={SACCT_FORMAT}"]
    return [*words, f"--jobs={','.join(jobs)}"]


def scontrol_argv(job: str) -> list[str]:
    return ["scontrol", "--oneliner", "show", "job", job]


def scancel_argv(jobs: Sequence[str], *, pending_only: bool = False) -> list[str]:
    """With `pending_only`, `jobs` are whole arrays: `--state` of one task ends all that wait beside it (22.05)."""
    if pending_only and any("_" in job for job in jobs):
        raise ValueError(f"only whole arrays can be cancelled by state: {jobs}")
    return ["scancel", "--quiet", *(["--state=PENDING"] if pending_only else []), *jobs]


def ask_squeue(shell: Shell, timeout_s: float) -> Listing:
    return _listing(shell.call(squeue_argv(), timeout_s=timeout_s), parse_squeue)


def ask_sacct(shell: Shell, jobs: Sequence[str], timeout_s: float) -> Listing:
    """Fails with a complaint where accounting is off."""
    return _listing(shell.call(sacct_argv(jobs), timeout_s=timeout_s), parse_sacct)


def ask_scontrol(shell: Shell, job: str, timeout_s: float) -> Listing:
    answer = shell.call(scontrol_argv(job), timeout_s=timeout_s)
    if answer.code not in (0, None) and "invalid job id" in answer.err.lower():
        return Listing(denied=(job,))
    return _listing(answer, parse_scontrol)


def _listing(answer: Answer, parse: Callable[[str], tuple[list[Row], int]]) -> Listing:
    if answer.code != 0:
        return Listing(complaint=answer.complaint)
    rows, unreadable = parse(answer.out)
    return Listing(tuple(rows), unreadable)


def cancel_jobs(shell: Shell, jobs: Sequence[str], timeout_s: float, *, pending_only: bool = False) -> str:
    """Cancel jobs; returns the complaint, empty when there was none. Jobs that ended already are no complaint."""
    if not jobs:
        return ""
    answer = shell.call(scancel_argv(jobs, pending_only=pending_only), timeout_s=timeout_s)
    return "" if answer.code == 0 or "invalid job id" in answer.err.lower() else answer.complaint
