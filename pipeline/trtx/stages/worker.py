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
from trtx.stages.find_params import read_params
from trtx.stages.job import (
    ATTEMPT_VARIABLE,
    PARENT_VARIABLE,
    PROGRESS_NAME,
    RANKS_FOLDER,
    RESULT_NAME,
    Failure,
    Job,
    Result,
    attempt_folder,
    dump_file,
)
from trtx.stages.ranks import OtherRanks, Rank, read_rank, tell_end, wait_for_stage
from trtx.stages.toolchain import check_toolchain

ALONE = Rank()
STOPPED = Interrupted("the step was stopped", fix="run `trtx apply` again to continue")


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
        rank = read_rank(os.environ)
        folder = _open_attempt(path.parent, rank)
    except TrtxError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    if rank.number > 0:
        return run_rank(job, folder, rank)
    return _tell_result(job, folder, run_job(job, folder, rank))


def _tell_result(job: Job, folder: Path, result: Result) -> int:
    """Write result.json, and the end of the log; returns the exit code."""
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


def _open_attempt(step_folder: Path, rank: Rank) -> Path:
    """The attempt's folder: the one the runner made, else the next free number."""
    if rank.count > 1 and not os.environ.get(ATTEMPT_VARIABLE):
        raise UsageProblem(
            "a step of several processes needs the number of its attempt",
            why="each of them would take one of its own",
            fix=f"set {ATTEMPT_VARIABLE} to the same number for all of them",
        )
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


def run_job(job: Job, folder: Path, rank: Rank = ALONE) -> Result:
    """Run a job to its end, whatever the end is; as rank 0 of several, with the others."""
    started = time.time()
    evidence = Evidence(job, folder, os.environ)
    outcome: dict[str, Any]
    try:
        outcome = _perform(job, folder, started, evidence, rank)
    except TrtxError as error:
        _print_cause(error)
        outcome = _failed(error, evidence, error)
    except (KeyboardInterrupt, SystemExit):
        outcome = {"state": "failed", "failure": Failure.of(STOPPED)}
    except BaseException as error:  # noqa: BLE001  The last resort: every end of a step has a result.
        traceback.print_exc()
        outcome = _failed(describe_unexpected(error), evidence, error)
    return _make_result(job, folder, started, outcome)


def run_rank(job: Job, folder: Path, rank: Rank) -> int:
    """Work for rank 0 in the folder that it stages; returns the exit code."""
    error: TrtxError | None = None
    try:
        staged = wait_for_stage(folder)
        if staged is None:
            return 0
        store = Store(Path(job.cache_dir))
        check_toolchain(job.step, job.factors)
        own = folder / RANKS_FOLDER / f"progress-{rank.number}.json"
        run_stage(job, _make_context(store, job, staged, own, rank))
    except TrtxError as caught:
        _print_cause(caught)
        error = caught
    except (KeyboardInterrupt, SystemExit):
        return STOPPED.exit_code
    except BaseException as caught:  # noqa: BLE001  As for the step itself.
        traceback.print_exc()
        error = describe_unexpected(caught)
    tell_end(folder, rank, Failure.of(error) if error else None)
    return error.exit_code if error else 0


def _make_result(job: Job, folder: Path, started: float, outcome: dict[str, Any]) -> Result:
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


def _perform(job: Job, folder: Path, started: float, evidence: Evidence, rank: Rank) -> dict[str, Any]:
    store = Store(Path(job.cache_dir))
    store.prepare()
    uses = [entry.key for entry in job.inputs.values()]
    note = {"key": job.key, "step": job.step, "recipe": job.recipe, "uses": uses}
    with single_flight(store, job.key, note, functools.partial(_tell_waiting, folder)) as adopted:
        if adopted is not None:
            check_expected(job.step, job.expected, adopted.files)
            return {"state": "adopted"}
        check_toolchain(job.step, job.factors)

        def give_up(error: TrtxError) -> None:
            """Leave although the stage does not: it waits for a rank that is gone."""
            failed = {"state": "failed", "failure": Failure.of(error)}
            os._exit(_tell_result(job, folder, _make_result(job, folder, started, failed)))

        with store.stage(job.key, uses) as staged, evidence.of_staging(staged):
            context = _make_context(store, job, staged, folder / PROGRESS_NAME, rank)
            with OtherRanks(job.step, folder, rank).working(staged, give_up):
                summary = run_stage(job, context)
            draft = Manifest(job.key, job.step, job.stage, job.factors, (), _provenance(job, started), summary)
            store.publish(staged, draft, lambda files: check_expected(job.step, job.expected, files))
    for key in uses:
        store.accept_links(key)
    return {"state": "published", "summary": summary}


def _make_context(store: Store, job: Job, staged: Path, progress_file: Path, rank: Rank) -> StepContext:
    work = staged / "work"
    if rank.number > 0:
        work = work / f"rank-{rank.number}"
        work.mkdir(parents=True)
    return StepContext(
        inputs={name: open_input(store, job, name) for name in job.inputs},
        output=staged / "output",
        work=work,
        keys={name: entry.key for name, entry in job.inputs.items()},
        progress_file=progress_file,
        choices=job.choices,
        rank=rank.number,
        ranks=rank.count,
    )


def run_stage(job: Job, context: StepContext) -> dict[str, Any]:
    """Run the stage of a job; returns its summary."""
    params = read_params(job.stage, job.params)
    backend = job.params.get("backend")
    with disk_errors(context.output):
        return load_stage(f"{backend}/{job.stage}" if backend else job.stage).run(params, context)


def _tell_waiting(folder: Path, text: str) -> None:
    """One line for the log, and for who watches the run."""
    with contextlib.suppress(OSError, TrtxError):  # Nobody needs it but people.
        write_text(folder / PROGRESS_NAME, json.dumps({"waiting": text, "time": time.time()}))
    print(text, flush=True)


def open_input(store: Store, job: Job, name: str) -> Path:
    """The folder of an input, every file of which was checked. Raises VerificationFailed when there is none."""
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
