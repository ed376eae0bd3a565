"""One run on disk: every file name of a run is made here.

.trtx/runs/<id>/plan.json                    the plan, exactly as executed
.trtx/runs/<id>/driver.json                  the process that drives the run
.trtx/runs/<id>/events.jsonl                 what happened, append-only
.trtx/runs/<id>/steps/<step>/job.json        what the worker is given
.trtx/runs/<id>/steps/<step>/attempts/<n>/   log.txt, progress.json, result.json
.trtx/runs/<id>/request.json                 the recipe and options of the command that began the run
.trtx/runs/<id>/slurm/<runner>/              jobs on a cluster, see trtx.runners.slurm.folder, and beside them:
.trtx/runs/<id>/slurm/<runner>/order.json    the groups that are submitted, written before the first is
.trtx/runs/<id>/slurm/<runner>/settled.json  what became of all of them is in the events
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtx.errors import UsageProblem, did_you_mean
from trtx.files import canonical_json, disk_errors, read_json, write_json, write_text
from trtx.paths import runs_dir
from trtx.plan.steps import Plan, Step, load_plan
from trtx.processes import describe_this_process, is_gone
from trtx.stages.job import JOB_NAME, PROGRESS_NAME, attempt_folder, dump_file

ORDER_NAME = "order.json"
SETTLED_NAME = "settled.json"


@dataclass(frozen=True)
class RunRecord:
    """A run's folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    def load_plan(self) -> Plan:
        return load_plan(read_json(self.folder / "plan.json"))

    def step_folder(self, step_id: str) -> Path:
        return self.folder / "steps" / step_id

    def attempts(self, step_id: str) -> list[int]:
        """Numbers of the attempts made, ascending."""
        return sorted(int(path.name) for path in (self.step_folder(step_id) / "attempts").glob("[0-9]*"))

    def attempt_folder(self, step_id: str, attempt: int) -> Path:
        return attempt_folder(self.step_folder(step_id), attempt)

    def log(self, step_id: str, attempt: int) -> Path:
        return self.attempt_folder(step_id, attempt) / "log.txt"

    def progress(self, step_id: str, attempt: int) -> dict[str, Any] | None:
        """The last progress a running attempt wrote: done, total, unit and time, or waiting and time."""
        try:
            progress: dict[str, Any] = read_json(self.attempt_folder(step_id, attempt) / PROGRESS_NAME)
        except (OSError, ValueError):
            return None
        return progress

    def submission_folder(self, runner: str) -> Path:
        """Where a cluster's jobs of the run are kept."""
        return self.folder / "slurm" / runner

    def submissions(self) -> list[str]:
        """Runners that jobs of the run were ordered from."""
        return sorted(path.parent.name for path in self.folder.glob(f"slurm/*/{ORDER_NAME}"))

    def is_settled(self, runner: str) -> bool:
        """Whether the events say what became of every job that a runner was given."""
        return (self.submission_folder(runner) / SETTLED_NAME).exists()

    def settle(self, runner: str) -> None:
        """Note that nothing of a runner's jobs is left to be followed."""
        if not self.is_settled(runner):
            write_json(self.submission_folder(runner) / SETTLED_NAME, {})

    def write_job(self, plan: Plan, step: Step) -> Path:
        """Write job.json exactly as planned; returns the step's folder."""
        folder = self.step_folder(step.id)
        write_text(folder / JOB_NAME, dump_file(step.job(plan)))
        return folder

    def next_attempt(self, step_id: str) -> int:
        """Make the folder of a step's next attempt and return its number."""
        number = max(self.attempts(step_id), default=0) + 1
        folder = self.attempt_folder(step_id, number)
        with disk_errors(folder):
            folder.mkdir(parents=True)
        return number

    def add_event(self, event: str, **fields: Any) -> None:
        """Append one line; a line is one write, so readers see whole lines."""
        line = canonical_json({"time": round(time.time(), 3), "event": event, **fields}) + b"\n"
        path = self.folder / "events.jsonl"
        with disk_errors(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def events(self) -> list[dict[str, Any]]:
        """All events; a torn last line, left by a full disk, is ignored."""
        try:
            lines = (self.folder / "events.jsonl").read_bytes().split(b"\n")
        except OSError:
            return []
        return [json.loads(line) for line in lines[:-1] if line]

    def write_request(self, request: Mapping[str, Any]) -> None:
        """Keep the recipe and the options that the run was asked for with."""
        write_json(self.folder / "request.json", request)

    def request(self) -> dict[str, Any] | None:
        """What the run was asked for; None when it was begun from a plan that was kept in a file."""
        try:
            request: dict[str, Any] = read_json(self.folder / "request.json")
        except (OSError, ValueError):
            return None
        return request

    def take_over(self) -> None:
        """Become the process that drives the run; the one before leaves when it sees that."""
        write_json(self.folder / "driver.json", describe_this_process())

    def driver(self) -> dict[str, Any]:
        """The note that names the process that drives the run; empty when it is not there."""
        try:
            note: dict[str, Any] = read_json(self.folder / "driver.json")
        except (OSError, ValueError):
            return {}
        return note

    def is_driven(self) -> bool:
        """Whether the process that drives the run is still there (or on another host, where this cannot be known)."""
        try:
            return not is_gone(read_json(self.folder / "driver.json"))
        except (OSError, ValueError):
            return False

    def has_ahead(self) -> bool:
        """Whether something may still happen in the run: it is driven, or has jobs whose end is not on record."""
        return self.is_driven() or any(not self.is_settled(name) for name in self.submissions())

    def has_end(self, step_id: str, attempt: int) -> bool:
        """Whether the attempt of a job is over, by its own word."""
        return (self.attempt_folder(step_id, attempt) / "end.json").exists()

    def is_driven_here(self) -> bool:
        """Whether another process of this machine drives the run."""
        note, me = self.driver(), describe_this_process()
        return bool(note) and note["host"] == me["host"] and note != me and not is_gone(note)


def describe_progress(progress: Mapping[str, Any]) -> str:
    """How far a step is, or whom it waits for, in a few words."""
    return (
        progress["waiting"] if "waiting" in progress else f"{progress['done']}/{progress['total']} {progress['unit']}"
    )


def create_run(project: Path, plan: Plan) -> RunRecord:
    """Start a new run's folder in a project. Names sort by time: the last four digits are 65,536ths of a second."""
    runs = runs_dir(project)
    runs.mkdir(parents=True, exist_ok=True)
    while True:
        seconds, rest_ns = divmod(time.time_ns(), 10**9)
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(seconds))}-{(rest_ns << 16) // 10**9:04x}"
        with suppress(FileExistsError):
            (runs / name).mkdir()
            break
    record = RunRecord(runs / name)
    write_json(record.folder / "plan.json", plan.to_json())
    write_json(record.folder / "driver.json", describe_this_process())
    return record


def find_run(project: Path, run_id: str | None = None) -> RunRecord:
    """A run by id, or the latest. Raises UsageProblem when there is none."""
    names = sorted(path.parent.name for path in runs_dir(project).glob("*/plan.json"))
    if not names:
        raise UsageProblem(
            f"there are no runs in {project}",
            why="trtx keeps a run's records in .trtx/ of the folder it was started in",
            fix="run `trtx apply RECIPE` here, or change to the folder you ran it in",
        )
    if run_id is not None and run_id not in names:
        raise UsageProblem(f"there is no run '{run_id}'", fix=did_you_mean(run_id, names))
    return RunRecord(runs_dir(project) / (run_id or names[-1]))


def runs_newest_first(project: Path) -> list[RunRecord]:
    """All runs of a project."""
    folders = sorted((path.parent for path in runs_dir(project).glob("*/plan.json")), reverse=True)
    return [RunRecord(folder) for folder in folders]


def find_run_of(project: Path, step_id: str) -> RunRecord | None:
    """The latest run that started a step, if any: in later ones it was cached."""
    return next((record for record in runs_newest_first(project) if record.attempts(step_id)), None)


def latest_run(project: Path) -> RunRecord | None:
    """The latest run, if any."""
    try:
        return find_run(project)
    except UsageProblem:
        return None


def latest_plan(project: Path) -> Plan | None:
    """The plan of the latest run; None when there is none that this version can read."""
    record = latest_run(project)
    try:
        return record.load_plan() if record else None
    except (UsageProblem, OSError, ValueError, KeyError, TypeError):
        return None
