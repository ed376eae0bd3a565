"""Reading what squeue, sacct and scontrol print. Lines that cannot be read are counted and otherwise ignored."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trtx.runners.slurm.groups import parse_indices

# Array's job id, index, state, nodes, start (expected or real), elapsed, reason, name, comment: free texts last.
SQUEUE_FORMAT = "%F|%K|%T|%N|%S|%M|%r|%j|%k"
SACCT_FORMAT = "JobID,State,NodeList,Start,ElapsedRaw,Reason,JobName"
# What scontrol prints as the indices of an array whose waiting tasks were all cancelled: NO_VAL of slurm.h.
NO_INDICES = "4294967294"
NO_TIME = ("N/A", "Unknown", "None", "(null)", "")


@dataclass(frozen=True)
class Row:
    """Slurm's word about some tasks of a job array. `job` is the array's id; `start` a local time in Slurm's words.

    Without `indices` it is about the tasks of the array that have no row of their own, or about a job that is none.
    """

    job: str
    indices: tuple[int, ...]
    state: str
    reason: str = ""
    node: str = ""
    start: str = ""
    elapsed_s: int = 0
    name: str = ""
    comment: str = ""


def parse_squeue(text: str) -> tuple[list[Row], int]:
    """Rows of `squeue --format=SQUEUE_FORMAT` and the number of unreadable lines."""
    return _parse_lines(text, _squeue_row)


def parse_sacct(text: str) -> tuple[list[Row], int]:
    """Rows of `sacct --parsable2 --format=SACCT_FORMAT` and the number of unreadable lines."""
    return _parse_lines(text, _sacct_row)


def parse_scontrol(text: str) -> tuple[list[Row], int]:
    """Rows of `scontrol --oneliner show job` and the number of unreadable lines."""
    return _parse_lines(text, _scontrol_row)


def _parse_lines(text: str, parse: Callable[[str], Row]) -> tuple[list[Row], int]:
    rows, unreadable = [], 0
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            rows.append(parse(line))
        except ValueError:
            unreadable += 1
    return rows, unreadable


def _squeue_row(line: str) -> Row:
    job, indices, state, node, start, elapsed, reason, name, comment = line.split("|", 8)
    # A job that is no array, or what is left of one whose waiting tasks were all cancelled.
    indices = "" if indices == "N/A" else indices
    return _row(job, indices, state, reason, node, start, parse_elapsed(elapsed), name, comment.strip())


def _sacct_row(line: str) -> Row:
    job, state, node, start, elapsed, reason, name = line.split("|", 6)
    array, _, indices = job.partition("_")
    return _row(array, indices, state, reason, node, start, int(elapsed or 0), name)


def _scontrol_row(line: str) -> Row:
    fields: dict[str, str] = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
    if "JobId" not in fields or "JobState" not in fields:
        raise ValueError("not a job")
    return _row(
        fields.get("ArrayJobId", fields["JobId"]),
        fields.get("ArrayTaskId", "").removeprefix(NO_INDICES),
        fields["JobState"],
        fields.get("Reason", ""),
        fields.get("NodeList", ""),
        fields.get("StartTime", ""),
        parse_elapsed(fields.get("RunTime", "0:00")),
        fields.get("JobName", ""),
    )


def _row(job: str, indices: str, state: str, reason: str, node: str, start: str, elapsed_s: int, *free: str) -> Row:
    if not job.isdigit() or not re.fullmatch(r"[A-Z_]+\+?( by \d+)?", state):
        raise ValueError("not a job")
    node = "" if node in ("(null)", "None assigned") else node
    start = "" if start in NO_TIME else start
    return Row(job, tuple(parse_indices(indices)) if indices else (), state, reason, node, start, elapsed_s, *free)


def parse_elapsed(text: str) -> int:
    """Seconds of squeue's [days-][hours:]minutes:seconds; 0 for what is no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
