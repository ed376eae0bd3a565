"""Runs one step: `python -m trtx.stages.worker job.json`, by hand, by a runner, or inside a cluster job.

Reads the job, checks the inputs, runs the stage in a staging folder, publishes the entry, writes result.json.
The exit code is 0 or that of the error (trtx.errors).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from trtx import __version__
from trtx.cache.lease import single_flight
from trtx.cache.manifest import Manifest
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem, Interrupted, StepFailed, TrtxError, UsageProblem, VerificationFailed
from trtx.files import disk_errors, write_text
from trtx.processes import die_with_parent
from trtx.stages.base import StepContext, load_stage
from trtx.stages.evidence import Evidence
from trtx.stages.expected import check_expected
from trtx.stages.job import (
    ATTEMPT_VARIABLE,
    PARENT_VARIABLE,
    PROGRESS_NAME,
    RESULT_NAME,
    Failure,
    Job,
    Result,
    attempt_folder,
    dump_file,
)
from trtx.stages.params import PARAMS


def main(arguments: list[str]) -> int:
    """Run the job named by the one argument; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m trtx.stages.worker job.json", file=sys.stderr)
        return UsageProblem.exit_code
    follow_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    path = Path(arguments[0]).absolute()
    try:
        job = read_job(path)
        folder = _open_attempt(path.parent)
    except TrtxError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    result = run_job(job, folder)
    try:
        write_text(folder / RESULT_NAME, dump_file(result))
    except TrtxError as error:  # The entry, if there is one, is in the cache all the same.
        print(error.render(), file=sys.stderr)
        return error.exit_code
    if result.failure is None:
        print(f"{job.step}: {result.state} {job.key} after {result.ended - result.started:.1f} s", flush=True)
        return 0
    failure = result.failure.error()
    print(failure.render(), file=sys.stderr, flush=True)
    if result.evidence:
        print(f"kept for inspection: {result.evidence}", file=sys.stderr, flush=True)
    return failure.exit_code


def follow_parent() -> None:
    """Get SIGTERM when the runner that set PARENT_VARIABLE dies, so that no step runs unseen."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):  # It died before the call above.
        raise SystemExit(Interrupted.exit_code)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Once is enough: a scheduler says it again at the time limit, and the result has to be written all the same.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt  # Not an Exception: no library between here and run_job swallows it.


def read_job(path: Path) -> Job:
    """Read job.json. Raises UsageProblem when it is missing or no job of this version."""
    try:
        return Job.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageProblem(f"cannot read the job {path}", why=error.strerror or "") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageProblem(f"{path} is not a job of this version of trtx", why=f"{where}: {first['msg']}") from error


def _open_attempt(step_folder: Path) -> Path:
    """The attempt's folder: the one the runner made, else the next free number."""
    if number := os.environ.get(ATTEMPT_VARIABLE):
        folder = attempt_folder(step_folder, int(number))
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number_free = 1
    while True:
        folder = attempt_folder(step_folder, number_free)
        try:
            with disk_errors(folder):
                folder.mkdir(parents=True)
        except FileExistsError:
            number_free += 1
        else:
            return folder


def run_job(job: Job, folder: Path) -> Result:
    """Run a job to its end, whatever the end is."""
    started = time.time()
    evidence = Evidence(job, folder, os.environ)
    outcome: dict[str, Any]
    try:
        outcome = _perform(job, folder, started, evidence)
    except TrtxError as error:
        _print_cause(error)
        outcome = _failed(error, evidence, error)
    except (KeyboardInterrupt, SystemExit):
        stopped = Interrupted("the step was stopped", fix="run `trtx apply` again to continue")
        outcome = {"state": "failed", "failure": Failure.of(stopped)}
    except BaseException as error:  # noqa: BLE001  The last resort: every end of a step has a result.
        traceback.print_exc()
        outcome = _failed(describe_unexpected(error), evidence, error)
    return Result(
        step=job.step,
        key=job.key,
        attempt=int(folder.name),
        started=started,
        ended=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        **outcome,
    )


def _failed(error: TrtxError, evidence: Evidence, cause: BaseException) -> dict[str, Any]:
    kept = evidence.keep(Failure.of(error), cause)
    return {"state": "failed", "failure": Failure.of(error), "evidence": str(kept) if kept else None}


def _perform(job: Job, folder: Path, started: float, evidence: Evidence) -> dict[str, Any]:
    store = Store(Path(job.cache_dir))
    store.prepare()
    uses = [entry.key for entry in job.inputs.values()]
    note = {"key": job.key, "step": job.step, "recipe": job.recipe, "uses": uses}
    with single_flight(store, job.key, note, functools.partial(_tell_waiting, folder)) as adopted:
        if adopted is not None:
            check_expected(job.step, job.expected, adopted.files)
            return {"state": "adopted"}
        params = PARAMS[job.stage].model_validate(job.params)
        inputs = {name: _open_input(store, job, name) for name in job.inputs}
        with store.stage(job.key, uses) as staged, evidence.of_staging(staged):
            context = StepContext(
                inputs=inputs,
                output=staged / "output",
                work=staged / "work",
                keys={name: entry.key for name, entry in job.inputs.items()},
                progress_file=folder / PROGRESS_NAME,
            )
            with disk_errors(context.output):
                summary = load_stage(job.stage).run(params, context)
            draft = Manifest(job.key, job.step, job.stage, job.factors, (), _provenance(job, started), summary)
            store.publish(staged, draft, lambda files: check_expected(job.step, job.expected, files))
    for key in uses:
        store.accept_links(key)
    return {"state": "published", "summary": summary}


def _tell_waiting(folder: Path, text: str) -> None:
    """One line for the log, and for who watches the run."""
    with contextlib.suppress(OSError, TrtxError):  # Nobody needs it but people.
        write_text(folder / PROGRESS_NAME, json.dumps({"waiting": text, "time": time.time()}))
    print(text, flush=True)


def _open_input(store: Store, job: Job, name: str) -> Path:
    entry = job.inputs[name]
    found = store.find(entry.key)
    if found.manifest is None:
        raise VerificationFailed(
            f"{job.step} cannot use its input '{name}' ({entry.step})",
            why=found.fault or f"there is no entry {entry.key} in the cache",
            fix="run `trtx apply` again: it makes the input first",
        )
    return store.output(entry.key)


def _provenance(job: Job, started: float) -> dict[str, Any]:
    return {
        "recipe": job.recipe,
        "trtx": __version__,
        "host": socket.gethostname(),
        "started": started,
        "duration_s": round(time.time() - started, 3),
        "inputs": {name: entry.key for name, entry in job.inputs.items()},
    }


def describe_unexpected(error: BaseException) -> TrtxError:
    """An error nobody foresaw, worded for people; its traceback is in the step's log."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return EnvironmentProblem(
            "the step ran out of memory",
            why=str(error),
            fix="free memory, or run fewer steps at once: --max-parallel 1",
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "trtx":
        return EnvironmentProblem(
            f"the Python package {error.name} is missing", fix="install the engine packages: pip install 'trtx[engine]'"
        )
    return StepFailed(
        f"{type(error).__name__}: {error}", why="this was not foreseen; the traceback is in the step's log"
    )


def _print_cause(error: TrtxError) -> None:
    """The traceback below a known error, for the log only."""
    if error.__cause__ is not None:
        traceback.print_exception(error.__cause__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
